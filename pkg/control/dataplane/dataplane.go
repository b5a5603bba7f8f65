// Package dataplane is the sink that makes BPF what the state says: the kernel's
// tables, and the programs on their hooks.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
)

// layout is the version of the tables' layout: a directory, so that two versions
// can stand side by side while one takes over from the other.
const layout = "v1"

// Options say where and how.
type Options struct {
	PinDir string // a directory on a bpffs; what is pinned there outlives the process
	Clsact bool   // attach through clsact even where the kernel has tcx
	XDP    bool   // attach xdp_network to the uplinks

	// TableSizes are the entries that tables are made for, by their C name, and
	// TableLimits those that they grow to at most; by default what the C declares, and a
	// share of the machine's memory.
	TableSizes, TableLimits map[string]int
}

// Dataplane is the sink. Ensure, Prune and Resync are the control loop's; the rest
// is safe for concurrent use.
type Dataplane struct {
	options  Options
	log      *slog.Logger
	kernel   *kernel.Maps
	programs *loader.Programs
	links    loader.Links

	classifier *classifier
	endpoints  *endpoints
	places     *places
	workloads  *reconcile.Tracked[kernel.Address, uint32]
	routes     *reconcile.Tracked[kernel.Prefix, kernel.Route]
	peers      *reconcile.Tracked[kernel.Address, kernel.Peer]
	listening  *listening // and the settings
	explaining sync.Mutex // one question at a time
	hosts      *reconcile.Tracked[uint32, kernel.HostEndpoint]
	early      *reconcile.Tracked[uint32, kernel.XDPRuleset] // what hosts have for XDP
	failsafe   *reconcile.Tracked[kernel.FailsafeKey, uint32]
	sources    *sources
	natNets    *reconcile.Tracked[kernel.Prefix, uint32]
	ports      *reconcile.Tracked[uint32, uint64] // that failsafe is about
	writes     int                                // to the tracked tables, ever
	attached   map[loader.Attachment]bool         // tried, and done
	listed     bool                               // attached has what former processes have left, too
	refused    map[loader.Attachment]string       // why XDP is not where it should be, as logged
	refusing   sync.Mutex                         // guards refused
	uplinks    map[int]desired.Link               // of the last round
	loaded     bool
	growth     *growth
	changes    changes

	stop  context.CancelFunc
	done  sync.WaitGroup
	sweep sweeper
}

// New opens the tables, those of a former process if there are any, and loads the
// programs. What a former process has attached goes on as it is until Ensure.
func New(o Options, log *slog.Logger) (*Dataplane, error) {
	d := &Dataplane{options: o, log: log, attached: make(map[loader.Attachment]bool), refused: make(map[loader.Attachment]string)}
	d.links = loader.Links{Dir: filepath.Join(o.PinDir, layout, "links"), Clsact: o.Clsact}
	k, err := kernel.OpenWith(filepath.Join(o.PinDir, layout, "maps"), kernel.Options{Sizes: o.TableSizes, Grow: d.makeRoom})
	if err != nil {
		return nil, err
	}
	programs, err := loader.Load(k.Handles(), d.links)
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	d.open(k, programs)
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.done.Go(func() { d.sweepFlows(ctx) })
	return d, nil
}

// open starts to keep these tables.
func (d *Dataplane) open(k *kernel.Maps, programs *loader.Programs) {
	d.kernel, d.programs, d.growth = k, programs, newGrowth(d.options)
	d.endpoints = newEndpoints(d.kernel.Endpoints)
	d.classifier = newClassifier(d.kernel, records{d.endpoints, d.kernel.HostEndpoints, d.kernel.XDPRulesets}, d.log)
	d.places = newPlaces(d.kernel, d.log)
	d.workloads = track(d, "workloads", workloadTable{d.kernel.Workloads, d.places})
	d.routes = track(d, "routes", routeTable{d.kernel.Routes, d.places})
	d.peers = track(d, "peers", d.kernel.Peers)
	d.listening = newListening(d.kernel.Settings, d.log)
	d.hosts = track(d, "host endpoints", d.kernel.HostEndpoints)
	d.early = track(d, "XDP rulesets", earlyTable{d.kernel.XDPRulesets})
	d.failsafe = track(d, "failsafe", d.kernel.Failsafe)
	d.ports = track(d, "failsafe ports", d.kernel.FailsafePorts)
	d.natNets = track(d, "nat_nets", d.kernel.NATNets)
	d.sources = newSources(d)
}

// Close lets go of the kernel's objects; traffic goes on without us.
func (d *Dataplane) Close() error {
	d.stop()
	d.done.Wait()
	return errors.Join(d.listening.close(), d.programs.Close(), d.kernel.Close())
}

// Maps are the open tables, for whoever reads them.
func (d *Dataplane) Maps() *kernel.Maps { return d.kernel }

// counted counts the writes to a table.
type counted[K, V comparable] struct {
	reconcile.Table[K, V]
	writes *int
}

func (c counted[K, V]) Put(k K, v V) error {
	err := c.Table.Put(k, v)
	if !errors.Is(err, kernel.ErrFull) {
		*c.writes++
	}
	return err
}

func (c counted[K, V]) Delete(k K) error {
	*c.writes++
	return c.Table.Delete(k)
}

func track[K, V comparable](d *Dataplane, name string, t reconcile.Table[K, V]) *reconcile.Tracked[K, V] {
	return reconcile.TrackWith(counted[K, V]{t, &d.writes}, reconcile.Options[V]{
		Name: name, Logger: d.log, Equal: func(a, b V) bool { return a == b },
	})
}

// Resync makes the next round read the kernel back.
func (d *Dataplane) Resync() {
	d.loaded, d.changes = false, changes{}
	d.workloads.Resync()
	d.routes.Resync()
	d.peers.Resync()
	d.listening.resync()
	d.hosts.Resync()
	d.early.Resync()
	d.failsafe.Resync()
	d.ports.Resync()
	d.natNets.Resync()
	d.sources.Resync()
	clear(d.attached)
	d.listed = false
}

// load reads the kernel back.
func (d *Dataplane) load() error {
	if d.loaded {
		return nil
	}
	if err := d.endpoints.load(); err != nil {
		return err
	}
	used, err := d.classifier.records.rulesets()
	if err != nil {
		return err
	}
	if err := d.classifier.load(used); err != nil {
		return err
	}
	d.loaded = true
	return nil
}

// Ensure adds and changes. One endpoint or address that fails does not stop the
// others; what fails stays closed. Where single endpoints, or entries that full tables
// have no room for, are all that failed the error is a desired.EndpointErrors and a
// desired.TableErrors.
func (d *Dataplane) Ensure(_ context.Context, want *desired.State) error {
	w := &want.Dataplane
	d.changes.begin(want)
	if err := d.load(); err != nil {
		return err
	}
	d.prepare(w)
	now, writes := time.Now(), d.writes
	failing, full := make(desired.EndpointErrors), make(desired.TableErrors)
	var errs []error
	note := func(what string, err error) bool {
		if err = withoutFull(what, err, full); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
		return err == nil
	}
	// First, and with nothing before it that can fail: whatever becomes of policy, these
	// ports are open.
	if !d.changes.sameLocal {
		ports := failsafeOf(w)
		note("failsafe", errors.Join(d.ports.Ensure(failsafePorts(ports)), d.failsafe.Ensure(ports)))
	}
	changed, err := d.listening.ensure(w)
	d.writes += changed
	note("settings", err)
	if !d.changes.samePeers {
		note("peers", d.peers.Ensure(peersOf(w)))
	}
	note("routes", d.ensureRoutes(want))
	if !d.changes.sameLocal {
		note("nat_nets", d.natNets.Ensure(natNetsOf(w)))
	}
	// An interface is closed before it has a policy: nothing gets through a
	// program that does not know the source.
	if !d.changes.sameLocal || len(w.HostEndpoints) > 0 {
		note("attach", d.attach(w, failing))
	}

	d.classifier.asked = func() (map[hint]int, error) {
		hints := d.endpoints.hints(w)
		return hints, addHostHints(hints, w, d.kernel.HostEndpoints)
	}
	rulesets, err := d.classifier.ensure(w.Policy, now)
	placed := note("policy", err)
	d.endpoints.ensure(w, rulesets, failing)
	hosts := hostEndpointsOf(w, rulesets, failing)
	placed = note("host endpoints", errors.Join(d.hosts.Ensure(hosts), d.early.Ensure(d.earlyOf(hosts)))) && placed
	settled, err := d.classifier.settle()
	if note("policy", err); settled {
		note("endpoints", d.endpoints.judgeAgain(rulesets.touched))
	}
	if placed {
		note("rulesets", d.left(now))
	}
	if !d.changes.sameLocal {
		slots := d.endpoints.addresses(w)
		note("workloads", d.workloads.Ensure(slots))
		if full["workloads"] != nil {
			note("workloads", d.homeless(w, failing))
		}
		note("endpoints", d.endpoints.moved(slots, false))
		note("allowed sources", d.sources.Ensure(d.sources.of(w, d.endpoints.slots)))
		note("endpoints", d.sources.bump(d.endpoints))
	}
	if writes != d.writes || d.uplinksChanged(w) || hostTouched(w, rulesets) {
		note("endpoints", d.endpoints.bump(0))
	}
	d.growFor(d.entries(), make(map[string]int))
	d.noteFills()
	err = partly(errs, failing, full)
	d.changes.ensured = err == nil
	return err
}

// left has the rulesets freed that no endpoint has any more.
func (d *Dataplane) left(now time.Time) error {
	if len(d.classifier.leaving) == 0 {
		d.classifier.left(nil, now)
		return nil
	}
	used, err := d.classifier.records.rulesets()
	if err == nil {
		d.classifier.left(used, now)
	}
	return err
}

// partly is what Ensure returns: where there are errors of the whole, it is not said of
// what else.
func partly(errs []error, failing desired.EndpointErrors, full desired.TableErrors) error {
	var parts []error
	if len(failing) > 0 {
		parts = append(parts, failing)
	}
	if len(full) > 0 {
		parts = append(parts, full)
	}
	switch {
	case len(errs) == 0 && len(parts) == 1:
		return parts[0]
	case len(errs) == 0:
		return errors.Join(parts...)
	}
	for _, p := range parts {
		errs = append(errs, errors.New(p.Error()))
	}
	return errors.Join(errs...)
}

// withoutFull returns the errors of err but those that say that a table is full: these it
// puts into full, as one.
func withoutFull(what string, err error, full desired.TableErrors) error {
	var first error
	var rest []error
	n := 0
	var walk func(error)
	walk = func(err error) {
		joined, ok := err.(interface{ Unwrap() []error })
		switch {
		case ok:
			for _, e := range joined.Unwrap() {
				walk(e)
			}
		case errors.Is(err, kernel.ErrFull):
			if n++; first == nil {
				first = err
			}
		default:
			rest = append(rest, err)
		}
	}
	if err != nil {
		walk(err)
	}
	if n == 1 {
		full[what] = first
	} else if n > 1 {
		full[what] = fmt.Errorf("%d entries, the first is %w", n, first)
	}
	return errors.Join(rest...)
}

// homeless puts the endpoints into failing of which not all addresses are in the table.
func (d *Dataplane) homeless(w *desired.Dataplane, failing desired.EndpointErrors) error {
	for key, e := range w.Endpoints {
		for _, a := range e.Addresses {
			_, there, err := d.kernel.Workloads.Get(kernel.NewAddress(a))
			if err != nil {
				return err
			}
			if !there && failing[key] == nil {
				failing[key] = fmt.Errorf("address %s: %w", a, kernel.ErrFull)
			}
		}
	}
	return nil
}

// uplinksChanged says whether another uplink may be the way to a node now.
func (d *Dataplane) uplinksChanged(w *desired.Dataplane) bool {
	same := len(d.uplinks) == len(w.Uplinks)
	for i, l := range w.Uplinks {
		was, ok := d.uplinks[i]
		same = same && ok && was.Up == l.Up && was.MTU == l.MTU && equalPrefixes(was.Addresses, l.Addresses)
	}
	d.uplinks = w.Uplinks
	return !same
}

// Prune removes what is not wanted, last what other things refer to.
func (d *Dataplane) Prune(_ context.Context, want *desired.State) error {
	w, writes := &want.Dataplane, d.writes
	var errs []error
	if !d.changes.sameLocal {
		slots := d.endpoints.addresses(w)
		errs = append(errs, d.sources.Prune(d.sources.of(w, d.endpoints.slots)), d.sources.bump(d.endpoints))
		errs = append(errs, d.workloads.Prune(slots), d.endpoints.moved(slots, true), d.endpoints.prune(w))
	}
	errs = append(errs, d.pruneRoutes(want))
	if !d.changes.samePeers {
		errs = append(errs, d.peers.Prune(peersOf(w)))
	}
	if !d.changes.sameLocal {
		errs = append(errs, d.pruneHostEndpoints(w), d.pruneFailsafe(w), d.natNets.Prune(natNetsOf(w)))
	}
	if writes != d.writes {
		errs = append(errs, d.endpoints.bump(0))
	}
	if !d.changes.sameLocal || len(w.HostEndpoints) > 0 {
		errs = append(errs, d.detach(w))
	}
	d.notePruned()
	err := errors.Join(errs...)
	d.changes.end(want, err)
	return err
}

// Detach removes every trace that a dataplane with this pin directory has left:
// programs from their hooks, links, tables. It says what it removed.
func Detach(pinDir string) ([]string, error) {
	links := loader.Links{Dir: filepath.Join(pinDir, layout, "links")}
	list, err := links.List()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	failed := links.DetachAll(slices.Collect(maps.Keys(list)))
	for a := range list {
		if err := failed[a]; err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("program %s from interface %d", a.Program, a.Ifindex))
	}
	clsact, err := loader.DetachClsact()
	errs = append(errs, err)
	for _, a := range clsact {
		removed = append(removed, fmt.Sprintf("filter %s from interface %d", a.Program, a.Ifindex))
	}
	maps := filepath.Join(pinDir, layout, "maps")
	if _, err := os.Stat(maps); err == nil {
		errs = append(errs, kernel.Unpin(maps))
		removed = append(removed, "tables "+maps)
	}
	for _, dir := range []string{maps, links.Dir, filepath.Join(pinDir, layout), pinDir} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
