"""A sweep's report: the HTML page, its figures, the settings in words."""
