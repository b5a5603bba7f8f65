package command

import (
	"context"
	"time"
)

func (a *app) try(ctx context.Context, s store, items []item, d time.Duration) error { return nil }
