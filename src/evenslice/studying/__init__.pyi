from .config import StudyConfig as StudyConfig
from .experiment import study as study
