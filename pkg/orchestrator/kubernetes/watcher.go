package kubernetes

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"calico-xdp/pkg/control/desired"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// pendingTime is how long what has been asked for may be waited for.
	pendingTime = 10 * time.Second
	// connectPeriod is the pause between attempts to find the API server.
	connectPeriod = 10 * time.Second
)

// Options are what stays the same.
type Options struct {
	// Node is this node's name in Kubernetes.
	Node string
	// Namespace is where the Secrets are.
	Namespace string
	// Connect finds the API server.
	Connect func() (Clients, error)
}

// Watcher follows what it is asked for. Its methods may be called from any goroutine.
type Watcher struct {
	o       Options
	log     *slog.Logger
	changed chan struct{}
	asks    chan asked
	limit   time.Duration // pendingTime

	mu sync.Mutex
	// want is what has been asked for last, seen what of that has been read whole.
	want, seen asked
	asking     bool // something has been asked for
	overdue    bool // what is wanted has been waited for long enough

	services, slices cache.Store // once they are followed
	stale            bool        // found is not what they say
	found            []desired.Service
	secrets          map[string]map[string]string // by name, then key
	values           map[desired.SecretKey]string // the same
}

// asked is what somebody wants to know.
type asked struct {
	services bool
	secrets  []string // names, sorted
}

func (a asked) nothing() bool { return !a.services && len(a.secrets) == 0 }

func (a asked) covers(o asked) bool {
	return (a.services || !o.services) && !slices.ContainsFunc(o.secrets, func(s string) bool { return !slices.Contains(a.secrets, s) })
}

// New returns a watcher that does nothing until it runs and is asked.
func New(o Options, log *slog.Logger) *Watcher {
	return &Watcher{
		o: o, log: log, changed: make(chan struct{}, 1), asks: make(chan asked, 1), limit: pendingTime,
		secrets: make(map[string]map[string]string),
	}
}

// Follow says what is wanted from now on: services or not, and Secrets by name.
func (w *Watcher) Follow(services bool, secrets []string) {
	now := asked{services, slices.Compact(slices.Sorted(slices.Values(secrets)))}
	w.mu.Lock()
	same := w.want.services == now.services && slices.Equal(w.want.secrets, now.secrets)
	w.want = now
	w.asking = w.asking || !now.nothing()
	w.mu.Unlock()
	if same {
		return
	}
	select { // only the last one counts
	case <-w.asks:
	default:
	}
	w.asks <- now
}

// Pending tells whether something may be wanted that has not been read yet. After some
// seconds without success it no longer does.
func (w *Watcher) Pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.overdue && (!w.asking || !w.seen.covers(w.want))
}

// Changed receives when what the watcher has to tell has changed.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

func (w *Watcher) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Run follows what is asked for until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	var kept sync.WaitGroup
	defer kept.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &following{Watcher: w, ctx: ctx, kept: &kept, secret: make(map[string]context.CancelFunc)}
	var again <-chan time.Time
	var limit <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-limit:
			w.mu.Lock()
			late := !w.seen.covers(w.want)
			w.overdue = true
			w.mu.Unlock()
			limit = nil
			if late {
				w.log.Warn("kubernetes: what BGP needs to know has not been read yet; BGP goes on without it", "waited", w.limit)
				w.signal()
			}
			continue
		case now := <-w.asks:
			f.want = now
			if limit == nil && !now.nothing() && !f.limited {
				limit, f.limited = time.After(w.limit), true
			}
		}
		again = nil
		if !f.apply() {
			again = time.After(connectPeriod)
		}
	}
}

// following is what Run has under way.
type following struct {
	*Watcher
	ctx      context.Context
	kept     *sync.WaitGroup
	clients  Clients
	want     asked
	limited  bool
	services bool
	secret   map[string]context.CancelFunc
	said     string
}

// apply starts what is wanted, and ends following Secrets that are not. It fails where
// there is no API server.
func (f *following) apply() bool {
	for name, stop := range f.secret {
		if !slices.Contains(f.want.secrets, name) {
			stop()
			delete(f.secret, name)
			f.forgetSecret(name)
		}
	}
	if f.want.nothing() {
		return true
	}
	if f.clients == nil {
		c, err := f.o.Connect()
		if err != nil {
			if f.said != err.Error() {
				f.said = err.Error()
				f.log.Warn("kubernetes: no API server; will keep trying", "error", err)
			}
			return false
		}
		f.clients = c
	}
	if f.want.services && !f.services {
		f.services = true
		f.kept.Go(func() { f.followServices(f.ctx, f.clients) })
	}
	for _, name := range f.want.secrets {
		if f.secret[name] == nil {
			ctx, stop := context.WithCancel(f.ctx)
			f.secret[name] = stop
			f.kept.Go(func() { f.followSecret(ctx, f.clients, name) })
		}
	}
	return true
}

// calls are a client's for one kind of object.
type calls[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// informer follows the objects that a field selector means, all if it is empty; strip
// takes off what nobody asks for, and may meet what it has left before. Each time that
// something else is left than before, changed is called.
func informer[L runtime.Object](w *Watcher, c Clients, what string, of calls[L], selection string, example runtime.Object, strip func(any) any, changed func()) cache.SharedIndexInformer {
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selection
			return of.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selection
			return of.Watch(ctx, o)
		},
	}
	i := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, c), example, 0, nil)
	said := ""
	// Neither fails on an informer that has not started.
	i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if text := err.Error(); ctx.Err() == nil && text != said {
			said = text
			w.log.Warn("kubernetes: "+what+" cannot be followed; will keep trying", "error", err)
		}
	})
	i.SetTransform(func(object any) (any, error) { return strip(object), nil })
	i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(before, now any) {
			if !reflect.DeepEqual(withoutVersion(before), withoutVersion(now)) {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	})
	return i
}

// bare is the little of an object's metadata that is kept.
func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

// withoutVersion is an object but for what differs with every write.
func withoutVersion(object any) any {
	if o, ok := object.(runtime.Object); ok {
		o = o.DeepCopyObject()
		if m, ok := o.(metav1.Object); ok {
			m.SetResourceVersion("")
		}
		return o
	}
	return object
}
