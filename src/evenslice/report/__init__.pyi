from .audit_tables import (
    answer_table as answer_table,
    audit_html as audit_html,
    audit_lines as audit_lines,
    stress_table as stress_table,
    stress_tables as stress_tables,
)
from .files import (
    AUDIT_FILES as AUDIT_FILES,
    need_report_extra as need_report_extra,
    write_audit_report as write_audit_report,
    write_report as write_report,
    write_study_report as write_study_report,
    write_survey_report as write_survey_report,
)
from .pictures import (
    explanation_html as explanation_html,
    map_line as map_line,
    map_shares as map_shares,
)
from .study_tables import study_html as study_html, tables_of_study as tables_of_study
from .survey_tables import (
    survey_csv as survey_csv,
    survey_html as survey_html,
    tables_of_survey as tables_of_survey,
)
from .tables import Table as Table, tone as tone
