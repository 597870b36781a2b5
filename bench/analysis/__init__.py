"""From records to tables: statistics, layouts, formats and comparisons."""
