from .audit.answers import four_answers as four_answers
from .audit.pictures import (
    explanation_html as explanation_html,
    map_line as map_line,
    map_shares as map_shares,
)
from .audit.sentences import (
    advice_sentence as advice_sentence,
    extent_sentence as extent_sentence,
    setting_lines as setting_lines,
    verdict_sentence as verdict_sentence,
)
from .audit.summary import audit_html as audit_html
from .base.wording import counted as counted, decimals as decimals
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
from .study.summary import study_html as study_html
from .study.wording import p_value as p_value, removed_part as removed_part
from .survey.summary import survey_html as survey_html
from .survey.tables import survey_csv as survey_csv
