from .audits import (
    AuditResult as AuditResult,
    SurveyedNetwork as SurveyedNetwork,
    SurveyResult as SurveyResult,
)
from .comparisons import (
    TASK_SCORES as TASK_SCORES,
    Comparison as Comparison,
    PooledComparison as PooledComparison,
    StudyPlan as StudyPlan,
    StudySummary as StudySummary,
    run_name as run_name,
    score_title as score_title,
)
from .intervals import (
    Interval as Interval,
    ratio as ratio,
)
from .measurements import (
    Measurements as Measurements,
)
from .stress import Stress as Stress, StressSummary as StressSummary, nan_mean as nan_mean
from .studies import (
    ExampleSlice as ExampleSlice,
    StudyResults as StudyResults,
)
from .tolerances import (
    Tolerances as Tolerances,
)
from .verdicts import (
    ask as ask,
    summarize as summarize,
)
from .volume_audits import (
    AxisChange as AxisChange,
    ClassChange as ClassChange,
    VolumeAuditResult as VolumeAuditResult,
)
