package control

import (
	"context"
	"errors"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
)

// View is what the loop knows between two rounds. It is the loop's own: not to be
// changed, and not to be kept.
type View struct {
	Node      string
	Resources *api.Store
	Tables    *policy.Tables
	State     *desired.State
	// Failing are the endpoints that the kernel does not have whole.
	Failing desired.EndpointErrors
}

// errNothingYet is the answer to questions that come too early.
var errNothingYet = errors.New("the datastore has not been read yet")

// Ask has a question answered between two rounds, when all that is known fits
// together. It returns what f does.
func (c *Controller) Ask(ctx context.Context, f func(View) error) error {
	answer := make(chan error, 1)
	question := func() {
		if c.want == nil || c.tables == nil {
			answer <- errNothingYet
			return
		}
		answer <- f(View{
			Node: c.o.Node, Resources: c.resources, Tables: c.tables, State: c.want, Failing: c.failing(),
		})
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case c.questions <- question:
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-answer:
		return err
	}
}

func (p *Published) failing() desired.EndpointErrors {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.enforced.failing
}
