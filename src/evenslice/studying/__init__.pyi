from .study_runner import working_in_study as working_in_study
