"""The verb `report`: tables of results as files, and the HTML page with its plots."""
