"""Raw files in, clean documents out: extraction in limited processes, FineWeb's filters, a reason for each drop."""
