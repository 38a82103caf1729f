"""The page, figures and tables of audits."""
