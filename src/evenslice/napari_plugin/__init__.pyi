from .audit_widget import AuditWidget as AuditWidget
from .sample import open_mni152 as open_mni152
from .segment_widget import SegmentWidget as SegmentWidget
