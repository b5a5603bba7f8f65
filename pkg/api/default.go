package api

// Default fills in what Calico fills in when it writes r.
func Default(r Resource) {}
