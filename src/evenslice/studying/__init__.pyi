from .config import StudyConfig as StudyConfig
from .outcome import RunOutcome as RunOutcome
from .study_runner import study as study
