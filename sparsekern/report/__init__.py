"""What was done to a model, layer by layer, and why."""

from .report import LayerReport, Report, times
from .table import text_table

__all__ = ["LayerReport", "Report", "text_table", "times"]
