package dataplane

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"calico-xdp/pkg/loader"
)

// How long a flow may be silent, as Calico's conntrack has it.
const (
	tcpTimeout       = time.Hour
	tcpClosedTimeout = 40 * time.Second
	udpTimeout       = 60 * time.Second
	icmpTimeout      = 5 * time.Second
	otherTimeout     = 10 * time.Minute

	sweepInterval = 10 * time.Second
)

// sweeper removes flows that have been silent for too long.
type sweeper struct {
	mu      sync.Mutex
	last    loader.SweepResult
	removed uint64 // ever
}

func (s *sweeper) run(ctx context.Context, programs *loader.Programs, log *slog.Logger) {
	hz, err := programs.ClockRate()
	if err != nil {
		log.Error("flows will not be swept", "error", err)
		return
	}
	timeouts := loader.Timeouts{
		TCP: tcpTimeout, TCPClosed: tcpClosedTimeout, UDP: udpTimeout, ICMP: icmpTimeout, Other: otherTimeout, HZ: hz,
	}
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		r, err := programs.Sweep(timeouts)
		if err != nil {
			log.Error("flows are not swept", "error", err)
		} else {
			s.mu.Lock()
			s.last = r
			s.removed += uint64(r.Removed)
			s.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// result is the last sweep's, with the number of flows removed ever.
func (s *sweeper) result() (kept uint32, removed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Kept, s.removed
}
