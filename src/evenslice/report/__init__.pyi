from .audit_tables import (
    audit_lines as audit_lines,
)
from .files import (
    AUDIT_FILES as AUDIT_FILES,
    html_of as html_of,
    need_report_extra as need_report_extra,
    tables_of as tables_of,
    write_report as write_report,
    write_report_files as write_report_files,
    write_study_report as write_study_report,
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
