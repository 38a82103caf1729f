from .audits import (
    AuditedVolume as AuditedVolume,
    AuditResult as AuditResult,
    AuditRun as AuditRun,
    ExampleWindows as ExampleWindows,
    SurveyedNetwork as SurveyedNetwork,
    SurveyResult as SurveyResult,
    SurveyRun as SurveyRun,
)
from .comparisons import (
    METRICS as METRICS,
    TASK_SCORES as TASK_SCORES,
    Arm as Arm,
    Comparison as Comparison,
    PooledComparison as PooledComparison,
    StudyPlan as StudyPlan,
    run_name as run_name,
    score_title as score_title,
)
from .intervals import (
    Interval as Interval,
    ratio as ratio,
)
from .measurements import (
    SAME as SAME,
    Measurements as Measurements,
    largest_bias as largest_bias,
    mean_biases as mean_biases,
)
from .stress import Stress as Stress, StressSummary as StressSummary
from .studies import (
    ExampleSlice as ExampleSlice,
    StudyResults as StudyResults,
    StudySummary as StudySummary,
)
from .tolerances import (
    Tolerances as Tolerances,
)
from .verdicts import (
    ask as ask,
    summarize as summarize,
)
