from .audit.agreement import conclusion as conclusion, methods_sentence as methods_sentence
from .audit.questions import three_questions as three_questions
from .audit.wording import verdict_sentence as verdict_sentence
from .base.wording import interval as interval, signed as signed
from .files import (
    FIGURE_FILES as FIGURE_FILES,
    TABLE_FILES as TABLE_FILES,
    need_report_extra as need_report_extra,
    write_figures as write_figures,
    write_report as write_report,
    write_study_report as write_study_report,
    write_survey_figures as write_survey_figures,
    write_survey_report as write_survey_report,
    write_tables as write_tables,
)
from .survey.tables import survey_csv as survey_csv
