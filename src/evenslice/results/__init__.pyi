from .asymmetry import (
    Measurements as Measurements,
)
from .asymmetry import (
    data_part as data_part,
)
from .asymmetry import (
    directional_bias as directional_bias,
)
from .asymmetry import (
    measure as measure,
)
from .asymmetry import (
    measure_outputs as measure_outputs,
)
from .asymmetry import (
    model_part as model_part,
)
from .asymmetry import (
    next_look as next_look,
)
from .asymmetry import (
    pair_bias as pair_bias,
)
from .asymmetry import (
    precise_enough as precise_enough,
)
from .asymmetry import (
    summarize as summarize,
)
from .audits import (
    AuditResult as AuditResult,
)
from .audits import (
    Examples as Examples,
)
from .audits import (
    StemKernels as StemKernels,
)
from .audits import (
    save_audits as save_audits,
)
from .color_balance import colour_balance as colour_balance
from .intervals import Interval as Interval
from .seeds import (
    FIGURES as FIGURES,
)
from .seeds import (
    SALIENCY_PERCENTILES as SALIENCY_PERCENTILES,
)
from .seeds import (
    saliency_percentiles as saliency_percentiles,
)
from .seeds import (
    summarize_runs as summarize_runs,
)
from .studies import (
    STUDY_FORMAT as STUDY_FORMAT,
)
from .studies import (
    ArmSummary as ArmSummary,
)
from .studies import (
    Comparison as Comparison,
)
from .studies import (
    Example as Example,
)
from .studies import (
    StudyResults as StudyResults,
)
from .studies import (
    StudyRun as StudyRun,
)
from .studies import (
    is_study as is_study,
)
from .studies import (
    load_study as load_study,
)
from .study_files import EXAMPLE as EXAMPLE
from .surveys import (
    SURVEY_FILES as SURVEY_FILES,
)
from .surveys import (
    Surveyed as Surveyed,
)
from .surveys import (
    SurveyResult as SurveyResult,
)
from .surveys import (
    is_survey as is_survey,
)
