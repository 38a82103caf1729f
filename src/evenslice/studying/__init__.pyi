from .config import STUDY_TEMPLATE as STUDY_TEMPLATE, StudyConfig as StudyConfig
from .outcome import RunOutcome as RunOutcome
from .study_folder import STUDY_FILES as STUDY_FILES, working_in_study as working_in_study
from .study_runner import study as study
