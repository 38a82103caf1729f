from .arms import (
    METRICS as METRICS,
    ArmSummary as ArmSummary,
    Comparison as Comparison,
    saliency_percentiles as saliency_percentiles,
    summarize_runs as summarize_runs,
)
from .array_files import stored_size as stored_size
from .asymmetry import (
    Figure as Figure,
    PairBias as PairBias,
    next_look as next_look,
    summarize as summarize,
)
from .audit_json import DEFINITIONS as DEFINITIONS
from .audits import (
    AuditedVolume as AuditedVolume,
    AuditResult as AuditResult,
    AuditRun as AuditRun,
    ExampleWindows as ExampleWindows,
    StemShape as StemShape,
    save_audits as save_audits,
)
from .biases import (
    directional_bias as directional_bias,
    halves as halves,
    model_part as model_part,
    pair_bias as pair_bias,
)
from .channel_balance import colour_balance as colour_balance
from .intervals import Interval as Interval
from .measurements import SAME as SAME, SAME_USE as SAME_USE, Measurements as Measurements
from .pooling import (
    ENOUGH_REPLICATES as ENOUGH_REPLICATES,
    LOSSES as LOSSES,
    PooledArm as PooledArm,
    PooledComparison as PooledComparison,
    Primary as Primary,
    pool_runs as pool_runs,
)
from .questions import Questions as Questions, ask as ask
from .ratios import ratio as ratio
from .replicates import (
    replicate_means as replicate_means,
    run_name as run_name,
)
from .scores import MAIN_SCORES as MAIN_SCORES, TASK_SCORES as TASK_SCORES, score_title as score_title
from .stress import (
    Stress as Stress,
    StressCounts as StressCounts,
    StressSummary as StressSummary,
    summarize_stress as summarize_stress,
)
from .student import inferiority as inferiority, student_interval as student_interval
from .studies import (
    ExampleSlice as ExampleSlice,
    StudyResults as StudyResults,
    StudyRun as StudyRun,
    is_study as is_study,
    load_study as load_study,
)
from .study_files import EXAMPLE_SIZE as EXAMPLE_SIZE, read_pictures as read_pictures
from .study_summaries import (
    STUDY_FORMAT as STUDY_FORMAT,
    StudySummary as StudySummary,
    failed_runs as failed_runs,
    read_comparisons as read_comparisons,
    read_pooled as read_pooled,
)
from .surveys import (
    SURVEY_FILES as SURVEY_FILES,
    SurveyedNetwork as SurveyedNetwork,
    SurveyResult as SurveyResult,
    SurveyRun as SurveyRun,
    is_survey as is_survey,
    mean_of_draws as mean_of_draws,
)
from .thresholds import Thresholds as Thresholds
from .verdicts import Decision as Decision, judge as judge
