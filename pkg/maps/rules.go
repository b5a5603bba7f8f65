package maps

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

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
type RuleCounters struct{ m *ebpf.Map }

// Len is one more than the highest number.
func (c RuleCounters) Len() int { return int(c.m.MaxEntries()) }

// Load reads the counters of the numbers below n, summed over CPUs.
func (c RuleCounters) Load(n int) ([]Counter, error) { return sums(c.m, min(n, c.Len())) }

// Zero makes the counters of these numbers zero.
func (c RuleCounters) Zero(numbers []uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	for len(numbers) > 0 {
		n := min(len(numbers), loadBatch)
		if _, err := c.m.BatchUpdate(numbers[:n], make([]Counter, n*cpus), nil); err != nil {
			return fmt.Errorf("map %s: %w", bpfMapRuleCounters, err)
		}
		numbers = numbers[n:]
	}
	return nil
}

// sums reads the first n entries of an array of counters per CPU, summed over CPUs.
func sums(m *ebpf.Map, n int) ([]Counter, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	var cursor ebpf.MapBatchCursor
	out := make([]Counter, 0, n)
	keys, values := make([]uint32, min(n, loadBatch)), make([]Counter, min(n, loadBatch)*cpus)
	for len(out) < n {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := 0; i < got && len(out) < n; i++ {
			var sum Counter
			for _, c := range values[i*cpus : (i+1)*cpus] {
				sum.Packets += c.Packets
				sum.Bytes += c.Bytes
			}
			out = append(out, sum)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break // that was the end
		}
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", nameOf(m), err)
		}
	}
	return out, nil
}
