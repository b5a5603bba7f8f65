package maps

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/cilium/ebpf"
)

// Where in a RuleName what follows its text is.
const (
	ruleNameAction = 254
	ruleNameStaged = 255
	ruleNameText   = 253 // what the text may take, without the NUL
)

// NewRuleName names a rule that has this text, which holds no NUL, and does this. A
// text that is too long is cut and ends in a hash of the whole, so that different
// texts stay different.
//
// What the text does not say is behind it, in the last two bytes: the same rule can
// do different things in different rulesets, such as the last one, and a rule is
// another one where it is only what staged policies would lead to.
func NewRuleName(text string, action RuleAction, staged bool) RuleName {
	var n RuleName
	if len(text) > ruleNameText {
		sum := sha256.Sum256([]byte(text))
		hash := "#" + hex.EncodeToString(sum[:16])
		text = text[:ruleNameText-len(hash)] + hash
	}
	for i := range len(text) {
		n.Text[i] = int8(text[i])
	}
	n.Text[ruleNameAction] = int8(action)
	if staged {
		n.Text[ruleNameStaged] = 1
	}
	return n
}

// String is the text of the rule.
func (n bpfRuleName) String() string {
	text := make([]byte, 0, len(n.Text))
	for _, c := range n.Text[:ruleNameAction] {
		if c == 0 {
			break
		}
		text = append(text, byte(c))
	}
	return string(text)
}

// Action is what the rule does.
func (n bpfRuleName) Action() RuleAction { return RuleAction(uint8(n.Text[ruleNameAction])) }

// Staged says that the rule only counts.
func (n bpfRuleName) Staged() bool { return n.Text[ruleNameStaged] != 0 }

// RuleCounters are the counters of rules by number, one for each CPU.
type RuleCounters struct{ h *held }

func newRuleCounters(h *held) RuleCounters {
	h.copy = copyCounters
	return RuleCounters{h}
}

// Len is one more than the highest number.
func (c RuleCounters) Len() int { return c.h.capacity() }

// Reserve makes room for the numbers below n.
func (c RuleCounters) Reserve(n int) error { return c.h.reserve(n) }

// Load reads the counters of the numbers below n, summed over CPUs.
func (c RuleCounters) Load(n int) (out []Counter, err error) {
	err = c.h.use(func(m *ebpf.Map) (err error) {
		out, err = sums(m, min(n, int(m.MaxEntries())))
		return err
	})
	return out, err
}

// Zero makes the counters of these numbers zero.
func (c RuleCounters) Zero(numbers []uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return c.h.use(func(m *ebpf.Map) error {
		for len(numbers) > 0 {
			n := min(len(numbers), loadBatch)
			if _, err := m.BatchUpdate(numbers[:n], make([]Counter, n*cpus), nil); err != nil {
				return err
			}
			numbers = numbers[n:]
		}
		return nil
	})
}

// perCPU calls fn with the first n entries of an array of counters, some at a time, each
// with one counter per CPU.
func perCPU(m *ebpf.Map, n int, fn func(keys []uint32, values []Counter, cpus int) error) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint32, min(n, loadBatch)), make([]Counter, min(n, loadBatch)*cpus)
	for n > 0 {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		got = min(got, n)
		n -= got
		if got > 0 {
			if err := fn(keys[:got], values[:got*cpus], cpus); err != nil {
				return err
			}
		}
		if err != nil {
			break // that was the end
		}
	}
	return nil
}

// sums reads the first n entries of an array of counters, summed over CPUs.
func sums(m *ebpf.Map, n int) ([]Counter, error) {
	out := make([]Counter, 0, n)
	err := perCPU(m, n, func(keys []uint32, values []Counter, cpus int) error {
		for i := range keys {
			var sum Counter
			for _, c := range values[i*cpus : (i+1)*cpus] {
				sum.Packets += c.Packets
				sum.Bytes += c.Bytes
			}
			out = append(out, sum)
		}
		return nil
	})
	return out, err
}

// copyCounters puts all counters into another array.
func copyCounters(to, from *ebpf.Map) error {
	return perCPU(from, int(from.MaxEntries()), func(keys []uint32, values []Counter, _ int) error {
		_, err := to.BatchUpdate(keys, values, nil)
		return err
	})
}
