package api

// clone copies what p points to, which holds no references.
func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}
