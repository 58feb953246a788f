"""Files of workflows -> graphs, and graphs -> files: API format, UI format, PNG."""
