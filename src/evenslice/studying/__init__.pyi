from .config import StudyConfig as StudyConfig
from .run_outcomes import RunOutcome as RunOutcome
from .study_runner import study as study, working_in_study as working_in_study
