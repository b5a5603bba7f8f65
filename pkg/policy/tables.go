// Package policy compiles Calico's policy resources into the tables that the
// BPF classifier reads: peer classes, port classes and rulesets of bit vectors.
// It does no I/O and knows no clock.
package policy

import (
	"iter"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
)

// PeerClass numbers one set of address sets: two addresses have the same class
// if and only if the same sets contain them. 0 is "in no set". Class numbers do
// not change their meaning as long as anything compiled may use them.
type PeerClass uint32

// PortClass numbers one kind of (protocol, port): two of them have the same
// class if and only if every rule treats them alike. 0 is the class of what no
// rule names. Source and destination ports have numbers of their own.
type PortClass uint16

// RulesetID numbers one ruleset content. Equal rulesets have one id, and an id is
// never used for another one. 0 is no ruleset.
type RulesetID uint32

// MaxRules is the largest ruleset that compiles.
const MaxRules = 65536

// Tables is everything the classifier needs on this node.
//
// The maps and dimensions are the compiler's own, true until the next Compile,
// which changes them in place. Parts and Segments of a ruleset, and the lists, are
// never changed.
//
// They hold what is needed to go on from the result before: rulesets that no
// endpoint has any more, and classes that no address or port has any more, stay
// for one result. Written in the order rows, peers and ports, endpoints, no packet
// meets a ruleset that does not fit its classes.
type Tables struct {
	// Compiler is whose result they are, and Result counts its results, from 1.
	Compiler *Compiler
	Result   uint64
	// Changes is how these tables differ from those of the result before.
	Changes Changes

	// Peers gives the class of addresses: that of the longest prefix that
	// contains them, class 0 where none does. It always holds 0.0.0.0/0 (IPv4
	// prefixes are never v4-mapped here; a class therefore tells the family).
	//
	// A writer that first adds new prefixes, longest first, then changes classes,
	// then removes prefixes, shortest first, lets every address go from its old
	// class to its new one without a third in between.
	Peers map[netip.Prefix]PeerClass
	// PeerClasses is one more than the highest class in use.
	PeerClasses PeerClass

	SourcePorts, DestinationPorts PortTable

	Rulesets map[RulesetID]*Ruleset
	// Endpoints are this node's workload endpoints, HostEndpoints its host
	// endpoints.
	Endpoints     map[api.Key]Rulesets
	HostEndpoints map[api.Key]HostRulesets

	// Problems says what could not be compiled, field by field, of what applies to
	// endpoints of this node. What a problem guards is closed and nothing else: a rule
	// denies all that it might mean, a policy all that comes to it.
	Problems []Problem
	// Staged are the policies that are there but not enforced, also those that apply to
	// no endpoint here.
	Staged []api.Key
}

// Changes is how tables differ from those of the result before. For the first
// result it is all there is.
type Changes struct {
	// Peers are the prefixes in Peers that are new, gone, or have another class.
	Peers []netip.Prefix
	// Moves are the pairs of classes from and to which addresses have gone.
	Moves [][2]PeerClass
	// SourcePorts and DestinationPorts are the ports that have another class: this.
	SourcePorts, DestinationPorts []PortRange
	// The classes that have a new meaning: their rows in the rulesets that there
	// were before are new, and no other rows of theirs are.
	PeerClasses                               []PeerClass
	SourcePortClasses, DestinationPortClasses []PortClass
	// Rulesets are those that are new or gone. A *Ruleset that has only got rows
	// is not among them.
	Rulesets []RulesetID
	// Endpoints are those, of both sorts, that are new, gone, or have other
	// rulesets.
	Endpoints []api.Key
}

// Rulesets are one endpoint's two rulesets, egress for what it sends and
// ingress for what it receives.
//
// The staged ones are what these would be if all staged policies were enforced. They
// decide about nothing; 0 where staged policies make no difference to which policies
// apply.
type Rulesets struct {
	Egress, Ingress             RulesetID
	StagedEgress, StagedIngress RulesetID
}

// HostRulesets are a host endpoint's rulesets, in the order in which they judge a
// packet. 0 is no ruleset: it goes on with the next stage.
//
// Allow by Untracked or PreDNAT spares a packet the later stages of this host
// endpoint in this direction, but not those of other endpoints. Both Continue what
// no rule decides about. A packet is for one of Forward, if it comes from or goes
// to another interface, and Normal, if from or to the host itself.
type HostRulesets struct {
	Untracked Rulesets  // doNotTrack: before connection tracking, replies as well
	PreDNAT   RulesetID // ingress only, before any translation of the destination
	Forward   Rulesets  // applyOnForward
	Normal    Rulesets  // its enforced ones are never 0
	// StagedPreDNAT is to PreDNAT what the staged ones of Rulesets are to theirs.
	StagedPreDNAT RulesetID
}

// PortTable gives port classes by protocol. A protocol has as many as it has ports:
// 65,536 or, without ports, 1. For ICMP and ICMPv6 a destination port is
// type<<8|code. Protocols that are not there have class 0.
type PortTable map[uint8][]PortClass

// Class is the class of a port.
func (t PortTable) Class(protocol uint8, port uint16) PortClass {
	if classes := t[protocol]; int(port) < len(classes) {
		return classes[port]
	}
	return 0
}

// Ranges returns the ports that have another class than 0, in order, in the
// longest ranges of one class.
func (t PortTable) Ranges() iter.Seq[PortRange] {
	return func(yield func(PortRange) bool) {
		for _, protocol := range slices.Sorted(maps.Keys(t)) {
			classes := t[protocol]
			for from := 0; from < len(classes); {
				to := from + 1
				for to < len(classes) && classes[to] == classes[from] {
					to++
				}
				if classes[from] != 0 && !yield(PortRange{protocol, uint16(from), uint16(to - 1), classes[from]}) {
					return
				}
				from = to
			}
		}
	}
}

// PortRange gives one class to a range of ports of one protocol.
type PortRange struct {
	Protocol uint8 // IANA number
	From, To uint16
	Class    PortClass
}

// Ruleset is an ordered list of rules, flattened from tiers, policies and
// profiles. A packet matches rule i if bit i is set in all four of Sources' row of
// its source address' class, Destinations' of its destination address', and so on.
// The first match decides; the last rule matches everything.
//
// A *Ruleset only grows: Dimensions get rows and blocks behind those that they
// have, and classes with a new meaning get one of them.
type Ruleset struct {
	Parts            []Part // the rules; see Rule
	Segments         []Segment
	Sources          *Dimension
	Destinations     *Dimension
	SourcePorts      *Dimension
	DestinationPorts *Dimension
}

// Segment is a run of rules that come from one tier or one profile.
type Segment struct {
	Tier     string // empty for a profile
	From, To int    // the rules from From up to To, with the tier's default action
	// Policies are those of the tier that select the endpoint and apply in the
	// direction, in order, whether they have rules or not; or the profile.
	Policies []api.Key
}

// Part is rules of a ruleset that follow each other.
type Part struct {
	From int // the number of its first rule in the ruleset
	Next int // Pass: index of the rule to go on at
	*Run
}

// Run is the rules that one policy or profile has in one direction, or the one that
// says what becomes of what no rule of a tier has matched. All rulesets that it is part
// of have it in common, so what changes another policy costs nothing for it;
// it is the same *Run from one result to the next.
type Run struct {
	ID    RuleID // of the rules, with the index 0
	Rules []RunRule
}

// RunRule is one rule of a run.
type RunRule struct {
	Action Action
	// SourceOnly says that the rule asks for nothing but the source's address: whatever
	// else there is of a packet matches, and so it does in classes to come.
	SourceOnly bool
	Index      int32 // of its id
}

// Len is how many rules the ruleset has.
func (r *Ruleset) Len() int {
	if len(r.Parts) == 0 {
		return 0
	}
	last := r.Parts[len(r.Parts)-1]
	return last.From + len(last.Rules)
}

// Rule returns a rule by its number.
func (r *Ruleset) Rule(i int) Rule {
	behind, _ := slices.BinarySearchFunc(r.Parts, i+1, func(p Part, i int) int { return p.From - i })
	p := r.Parts[behind-1]
	return p.rule(i - p.From)
}

// Rules are the rules with their numbers.
func (r *Ruleset) Rules() iter.Seq2[int, Rule] {
	return func(yield func(int, Rule) bool) {
		for _, p := range r.Parts {
			for i := range p.Rules {
				if !yield(p.From+i, p.rule(i)) {
					return
				}
			}
		}
	}
}

func (p *Part) rule(i int) Rule {
	x := Rule{Action: p.Run.Rules[i].Action, ID: p.ID}
	if x.ID.Index = int(p.Run.Rules[i].Index); x.Action == Pass {
		x.Next = uint16(p.Next)
	}
	return x
}

// SegmentOf returns the segment of a rule; nil for the final drop or allow. For a
// tier's default action it says which policies did not match.
func (r *Ruleset) SegmentOf(rule int) *Segment {
	for i := range r.Segments {
		if s := &r.Segments[i]; s.From <= rule && rule < s.To {
			return s
		}
	}
	return nil
}

// Affected says whether a change of an address from one class to another can
// change a verdict of this ruleset.
func (r *Ruleset) Affected(from, to PeerClass) bool {
	return r.Sources.RowOf(uint32(from)) != r.Sources.RowOf(uint32(to)) ||
		r.Destinations.RowOf(uint32(from)) != r.Destinations.RowOf(uint32(to))
}

// Dimension gives a row to each class of one of a packet's four parts. Bit i of a
// row says whether rule i matches. Rows of classes that the rules do not tell
// apart are one, and so are equal parts of rows.
type Dimension struct {
	// Row is the number of each class's row. A class at or beyond its end has row 0.
	Row []uint32
	// Blocks are the rows one after the other, Width blocks each, as many as it
	// takes for all rules.
	Blocks []Block
	Width  int
	// Words are what the blocks are made of.
	Words []uint64
	// Any says that no rule asks for anything here: in every class all rules match, and so
	// they do in classes to come.
	Any bool
}

// Block is 64 words of a row: the bits of 4,096 rules. Words that are zero are not
// there.
type Block struct {
	Stored uint64 // bit w is set if word w is not zero
	At     uint32 // index in Words of the first that is not; the others follow it
}

// RowOf is the number of a class's row.
func (d *Dimension) RowOf(class uint32) int {
	if int(class) < len(d.Row) {
		return int(d.Row[class])
	}
	return 0
}

// Vector is the row of a class.
func (d *Dimension) Vector(class uint32) []Block {
	row := d.RowOf(class)
	return d.Blocks[row*d.Width : (row+1)*d.Width]
}

// Word is one word of the row of a class: the bits of the rules from 64 times w.
func (d *Dimension) Word(class uint32, w int) uint64 {
	b, bit := d.Vector(class)[w/64], uint64(1)<<(w%64)
	if b.Stored&bit == 0 {
		return 0
	}
	return d.Words[int(b.At)+bits.OnesCount64(b.Stored&(bit-1))]
}

// Action is what a rule does.
type Action uint8

const (
	Deny Action = iota + 1
	Allow
	Pass     // go on at Rule.Next
	Log      // report, go on with the next rule
	Continue // nothing is decided: go on with the next stage; see HostRulesets
)

// Rule is one rule of a ruleset.
type Rule struct {
	Action Action
	Next   uint16 // Pass: index of the rule to go on at
	ID     RuleID // where it comes from
}

// Problem is one object that could not be compiled whole.
type Problem struct {
	Object api.Key
	Err    error
}
