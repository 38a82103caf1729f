from .audits import (
    AuditedVolume as AuditedVolume,
    AuditResult as AuditResult,
    AuditRun as AuditRun,
    ExampleWindows as ExampleWindows,
    StemShape as StemShape,
    save_audits as save_audits,
)
from .comparisons import (
    ENOUGH_REPLICATES as ENOUGH_REPLICATES,
    LOSSES as LOSSES,
    MAIN_SCORES as MAIN_SCORES,
    METRICS as METRICS,
    TASK_SCORES as TASK_SCORES,
    ArmSummary as ArmSummary,
    Comparison as Comparison,
    PooledArm as PooledArm,
    PooledComparison as PooledComparison,
    Primary as Primary,
    pool_runs as pool_runs,
    replicate_means as replicate_means,
    run_name as run_name,
    score_title as score_title,
    summarize_runs as summarize_runs,
)
from .documents import DEFINITIONS as DEFINITIONS, FORMAT as FORMAT
from .intervals import (
    Interval as Interval,
    ratio as ratio,
    student_interval as student_interval,
)
from .measurements import (
    SAME as SAME,
    SAME_USE as SAME_USE,
    Measurements as Measurements,
    directional_bias as directional_bias,
    halves as halves,
    model_part as model_part,
    pair_bias as pair_bias,
)
from .stress import (
    Stress as Stress,
    StressCounts as StressCounts,
    StressSummary as StressSummary,
    summarize_stress as summarize_stress,
)
from .studies import (
    EXAMPLE_SIZE as EXAMPLE_SIZE,
    ExampleSlice as ExampleSlice,
    StudyResults as StudyResults,
    StudyRun as StudyRun,
    StudySummary as StudySummary,
    failed_runs as failed_runs,
    is_study as is_study,
    load_study as load_study,
    read_comparisons as read_comparisons,
    read_example as read_example,
    read_pooled as read_pooled,
)
from .surveys import (
    SURVEY_FILES as SURVEY_FILES,
    SurveyedNetwork as SurveyedNetwork,
    SurveyResult as SurveyResult,
    SurveyRun as SurveyRun,
    is_survey as is_survey,
)
from .tolerances import Tolerances as Tolerances
from .verdicts import (
    Decision as Decision,
    Figure as Figure,
    Questions as Questions,
    ask as ask,
    summarize as summarize,
)
