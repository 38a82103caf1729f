from .audit_answers import (
    advice_sentence as advice_sentence,
    answer_table as answer_table,
    audit_html as audit_html,
    extent_sentence as extent_sentence,
    four_answers as four_answers,
    setting_lines as setting_lines,
    verdict_sentence as verdict_sentence,
)
from .audit_tables import TABLE_FILES as TABLE_FILES
from .files import (
    FIGURE_FILES as FIGURE_FILES,
    need_report_extra as need_report_extra,
    write_figures as write_figures,
    write_report as write_report,
    write_study_report as write_study_report,
    write_survey_figures as write_survey_figures,
    write_survey_report as write_survey_report,
    write_tables as write_tables,
)
from .formatting import counted as counted
from .pictures import (
    explanation_html as explanation_html,
    map_line as map_line,
    map_shares as map_shares,
)
from .stress_tables import stress_table as stress_table
from .study_tables import arm_tables as arm_tables, failed_table as failed_table, study_html as study_html
from .survey_tables import (
    failed_networks as failed_networks,
    survey_csv as survey_csv,
    survey_html as survey_html,
    survey_table as survey_table,
)
from .tables import Table as Table, tone as tone
