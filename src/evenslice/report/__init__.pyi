from .audit_tables import (
    audit_lines as audit_lines,
    survey_csv as survey_csv,
)
from .files import (
    AUDIT_FILES as AUDIT_FILES,
    html_of as html_of,
    need_report_extra as need_report_extra,
    tables_of as tables_of,
    write_audit_report as write_audit_report,
    write_report as write_report,
    write_study_report as write_study_report,
    write_survey_report as write_survey_report,
    write_volume_report as write_volume_report,
)
from .next_steps import (
    badge_text as badge_text,
)
from .pictures import (
    explanation_html as explanation_html,
    map_line as map_line,
    map_shares as map_shares,
)
from .tables import (
    Table as Table,
)
