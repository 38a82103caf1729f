from .files import (
    FIGURES as FIGURES,
)
from .files import (
    TABLES as TABLES,
)
from .files import (
    need_drawing as need_drawing,
)
from .files import (
    write_figures as write_figures,
)
from .files import (
    write_report as write_report,
)
from .files import (
    write_study_report as write_study_report,
)
from .files import (
    write_survey_figures as write_survey_figures,
)
from .files import (
    write_survey_report as write_survey_report,
)
from .files import (
    write_tables as write_tables,
)
from .survey.tables import survey_csv as survey_csv
