package bgp

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// A wrong password shows nowhere: the kernel drops the segments, and either end waits.
// But the kernel counts what it drops, for the whole host. So when a session has been
// down for a while, nobody has said why, and these counts move, that is said.

const (
	diagnosePeriod = 5 * time.Second
	// defaultPatience is how long a session may take to come up before it is looked
	// into.
	defaultPatience = 10 * time.Second
)

// signatures are counts of TCP segments that were dropped for their MD5 signature.
type signatures struct {
	missing    uint64 // none, where there is a password here
	unexpected uint64 // one, where there is no password here
	wrong      uint64
}

// readSignatures reads the kernel's counts; all 0 where it has none.
func readSignatures() (s signatures) {
	data, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return s
	}
	var names []string
	for line := range bytes.Lines(data) {
		words := strings.Fields(string(line))
		if len(words) == 0 || words[0] != "TcpExt:" {
			continue
		}
		if names == nil { // a line of names is followed by one of values
			names = words
			continue
		}
		for i := range min(len(names), len(words)) {
			n, _ := strconv.ParseUint(words[i], 10, 64)
			switch names[i] {
			case "TCPMD5NotFound":
				s.missing = n
			case "TCPMD5Unexpected":
				s.unexpected = n
			case "TCPMD5Failure":
				s.wrong = n
			}
		}
		return s
	}
	return s
}

// diagnose looks into sessions that do not come up, until ctx ends.
func (s *Speaker) diagnose(ctx context.Context) {
	tick := time.NewTicker(s.diagnoses)
	defer tick.Stop()
	before := readSignatures()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := readSignatures()
		s.mu.Lock()
		sessions := maps.Clone(s.sessions)
		s.mu.Unlock()
		for address, w := range sessions {
			s.watched.stuck(address, time.Now(), silence(w, before, now))
		}
		before = now
	}
}

// silence is why a session may not come up of which nothing is heard; empty: no idea.
func silence(w session, before, now signatures) string {
	switch password := w.password != ""; {
	case password && now.wrong > before.wrong:
		return "TCP MD5: segments with a wrong signature arrive, the passwords of the two ends differ"
	case password && now.missing > before.missing:
		return "TCP MD5: segments without signature arrive, the peer uses no password"
	case !password && now.unexpected > before.unexpected:
		return "TCP MD5: segments with a signature arrive, the peer uses a password"
	case w.passive && password:
		return "Socket: the peer does not call, is the password the peer's?"
	case w.passive:
		return "Socket: the peer does not call"
	case password:
		return "Socket: no answer, is the password the peer's?"
	}
	return "Socket: no answer"
}

// stuck notes the reason of a session of which nothing has been heard for a while.
// What the counts show is evidence; that there is no answer is said only where there
// is nothing better.
func (w *watched) stuck(address netip.Addr, now time.Time, reason string) {
	w.mu.Lock()
	s := w.peers[address]
	silent := s != nil && !s.up && now.Sub(s.since) >= w.patience && now.Sub(s.heard) >= w.patience
	if silent && !strings.HasPrefix(reason, "TCP MD5") {
		silent = s.reason == ""
	}
	w.mu.Unlock()
	if silent {
		w.fails(address, reason, true)
	}
}
