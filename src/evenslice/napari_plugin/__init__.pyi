from .layers import open_mni152 as open_mni152
from .widgets import AuditWidget as AuditWidget, SegmentWidget as SegmentWidget
