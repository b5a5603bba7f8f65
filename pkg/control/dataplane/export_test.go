package dataplane

// AtGrowth has fn called between the steps of a growth.
func (d *Dataplane) AtGrowth(fn func(step string)) { d.growth.step = fn }
