from .arms import (
    METRICS as METRICS,
    SALIENCY_PERCENTILES as SALIENCY_PERCENTILES,
    ArmSummary as ArmSummary,
    Comparison as Comparison,
    largest_bias as largest_bias,
    saliency_percentiles as saliency_percentiles,
    summarize_runs as summarize_runs,
)
from .array_files import stored_size as stored_size
from .asymmetry import (
    PairBias as PairBias,
    next_look as next_look,
    precise_enough as precise_enough,
    summarize as summarize,
)
from .audits import (
    AuditedVolume as AuditedVolume,
    AuditResult as AuditResult,
    AuditRun as AuditRun,
    ExampleWindows as ExampleWindows,
    StemShape as StemShape,
    save_audits as save_audits,
)
from .biases import directional_bias as directional_bias, model_part as model_part, pair_bias as pair_bias
from .channel_balance import colour_balance as colour_balance
from .evidence import (
    MethodNames as MethodNames,
    answer_evidence as answer_evidence,
    are_votes as are_votes,
    class_evidence as class_evidence,
    count_attended as count_attended,
    count_slices as count_slices,
    second_evidence as second_evidence,
)
from .intervals import FEW_SLICES as FEW_SLICES, Interval as Interval
from .measurements import (
    BiasParts as BiasParts,
    Measurements as Measurements,
    measure_shares as measure_shares,
    measure_windows as measure_windows,
    split_biases as split_biases,
)
from .output_changes import OUTPUT_FIELDS as OUTPUT_FIELDS, SAME_OUTPUT as SAME_OUTPUT
from .pooling import (
    ENOUGH_REPLICATES as ENOUGH_REPLICATES,
    LOSSES as LOSSES,
    POOLED as POOLED,
    PooledArm as PooledArm,
    PooledComparison as PooledComparison,
    Primary as Primary,
    pool_runs as pool_runs,
    uncompared_folds as uncompared_folds,
)
from .ratios import ratio as ratio
from .replicates import (
    Unit as Unit,
    pair_runs as pair_runs,
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
    read_score as read_score,
)
from .subsets import SubsetMeasurements as SubsetMeasurements
from .surveys import (
    SURVEY_FILES as SURVEY_FILES,
    SurveyedNetwork as SurveyedNetwork,
    SurveyResult as SurveyResult,
    SurveyRun as SurveyRun,
    is_survey as is_survey,
    mean_of_draws as mean_of_draws,
)
from .thresholds import Thresholds as Thresholds
