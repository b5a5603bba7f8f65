// Package datastore keeps the resources in etcd v3, under Calico's own keys and
// as Calico's own JSON. Every write is compare-and-swap; a [Watcher] hands out a
// snapshot and then what changes, whatever happens to etcd meanwhile.
package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
)

const (
	// requestTimeout bounds one request, connecting included.
	requestTimeout = 5 * time.Second
	// memberTimeout is how long a member may take to answer what another one
	// can be asked too.
	memberTimeout = 2 * time.Second
	// patience is how long a request waits for an etcd that refuses
	// connections: as long as one takes to restart.
	patience = 3 * time.Second
	// A member that is silent this long (a broken path, a frozen process) is
	// left for another one. gRPC pings no more often than every 10 s.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second

	// Objects of one range request, and how much they should be.
	firstPage = 1000
	maxPage   = 16_000
	pageBytes = 16 << 20
)

// Client reads and writes resources. It may be used from many goroutines.
type Client struct {
	config Config
	codec  *codec
	tls    *reloadingTLS // nil: plain connections
	log    *slog.Logger

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	initialized atomic.Bool // see Initialize

	mu       sync.Mutex
	etcd     *clientv3.Client
	loggedIn bool // or there is no user to log in
}

// Open returns a client of the datastore. It does not wait for a connection: an
// error here is one of the configuration, not of the network.
func Open(ctx context.Context, config Config, log *slog.Logger) (*Client, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("datastore: %w", err)
	}
	c := &Client{config: config, codec: newCodec(), log: log, loggedIn: config.Username == ""}
	var err error
	if config.secure() {
		if c.tls, err = newReloadingTLS(config); err != nil {
			return nil, fmt.Errorf("datastore: %w", err)
		}
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	if c.etcd, err = c.dial("", ""); err != nil {
		c.cancel()
		return nil, fmt.Errorf("datastore: %w", err)
	}
	return c, nil
}

// Close ends the client and all its watchers.
func (c *Client) Close() {
	c.cancel()
	c.watchers.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.etcd.Close() // it fails with its context's end, which is what is wanted
}

// dial returns a client that connects by itself, and has logged in if there is
// a user.
func (c *Client) dial(user, password string) (*clientv3.Client, error) {
	options := []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
		MinConnectTimeout: patience,
	})}
	if c.tls != nil {
		options = append(options, grpc.WithTransportCredentials(c.tls))
	}
	return clientv3.New(clientv3.Config{
		Endpoints: c.config.Endpoints,
		Username:  user, Password: password,
		DialTimeout:       requestTimeout - patience, // of logging in
		DialKeepAliveTime: keepaliveTime, DialKeepAliveTimeout: keepaliveTimeout,
		DialOptions:     options,
		MaxUnaryRetries: 3, // enough to log in again; see request
		Context:         c.ctx,
		Logger:          zap.NewNop(), // all that matters is in the errors
	})
}

// connect returns the connection once it is ready, or after a while what is
// wrong with it. Logging in is left until then: it could not say what is.
func (c *Client) connect(ctx context.Context) (*clientv3.Client, error) {
	c.mu.Lock()
	etcd, loggedIn := c.etcd, c.loggedIn
	c.mu.Unlock()
	if err := ready(ctx, etcd.ActiveConnection()); err != nil || loggedIn {
		return etcd, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loggedIn {
		etcd, err := c.dial(c.config.Username, c.config.Password)
		if err != nil {
			return nil, err
		}
		c.etcd.Close()
		c.etcd, c.loggedIn = etcd, true
	}
	return c.etcd, nil
}

// ready waits for the connection as long as patience lasts. etcd's client would
// wait for it in every request, and never tell why in vain.
func ready(ctx context.Context, conn *grpc.ClientConn) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready, connectivity.Shutdown:
			return nil
		case connectivity.Idle:
			conn.Connect()
		}
		if !conn.WaitForStateChange(waiting, state) {
			_, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(false))
			return err
		}
	}
}

// request runs one request that changes nothing, again if the connection breaks
// under it.
func request[R any](ctx context.Context, c *Client, do func(context.Context, *clientv3.Client) (R, error)) (R, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	limit := requestTimeout
	if len(c.config.Endpoints) > 1 {
		limit = memberTimeout
	}
	for {
		r, connected, err := attempt(limited, c, limit, do)
		if err == nil {
			return r, nil
		}
		if !connected || !unavailable(err) || !sleep(limited, 20*time.Millisecond) {
			return r, c.failed(ctx, err)
		}
	}
}

// write runs one request that may change something, once: if the connection
// breaks under it, nobody knows whether it did.
func write[R any](ctx context.Context, c *Client, do func(context.Context, *clientv3.Client) (R, error)) (R, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, _, err := attempt(limited, c, requestTimeout, do)
	if err != nil {
		return r, c.failed(ctx, err)
	}
	return r, nil
}

func attempt[R any](ctx context.Context, c *Client, limit time.Duration, do func(context.Context, *clientv3.Client) (R, error)) (r R, connected bool, err error) {
	etcd, err := c.connect(ctx)
	if err != nil {
		return r, false, err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err = do(limited, etcd)
	return r, true, err
}

// each calls fn for every key from begin up to end, in order, all as of one
// revision, which it returns with the cluster's id. rev 0 is the present. While fn
// is at one page, the next one is on its way.
func (c *Client) each(ctx context.Context, begin, end string, rev int64, keysOnly bool, fn func(*mvccpb.KeyValue) error) (revision int64, cluster uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		page *clientv3.GetResponse
		err  error
	}
	answers := make(chan answer, 1)
	get := func(begin string, rev int64, size int64) {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(size), clientv3.WithRev(rev)}
		if keysOnly {
			options = append(options, clientv3.WithKeysOnly())
		}
		page, err := request(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.GetResponse, error) {
			return etcd.Get(ctx, begin, options...)
		})
		answers <- answer{page, err}
	}
	size := int64(firstPage)
	go get(begin, rev, size)
	for {
		a := <-answers
		if a.err != nil {
			return 0, 0, a.err
		}
		page := a.page
		if rev == 0 {
			rev = page.Header.Revision
		}
		if page.More {
			size = nextPage(size, page)
			go get(string(page.Kvs[len(page.Kvs)-1].Key)+"\x00", rev, size)
		}
		for _, kv := range page.Kvs {
			if err := fn(kv); err != nil {
				return 0, 0, err
			}
		}
		if !page.More {
			return rev, page.Header.ClusterId, nil
		}
	}
}

// nextPage is the size of the page after this one. For each, the server counts all keys
// up to the end of the range, so there should not be many.
func nextPage(size int64, page *clientv3.GetResponse) int64 {
	bytes := 0
	for _, kv := range page.Kvs {
		bytes += len(kv.Key) + len(kv.Value)
	}
	switch {
	case bytes > pageBytes:
		return max(size/4, 100)
	case bytes < pageBytes/8:
		return min(4*size, maxPage)
	}
	return size
}

// openWatch opens a stream of what changes in the watched range after the
// revision. It ends with ctx, or when the member loses its leader.
func (c *Client) openWatch(ctx context.Context, after int64) (pb.Watch_WatchClient, error) {
	etcd, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewWatchClient(etcd.ActiveConnection()).
		Watch(clientv3.WithRequireLeader(ctx), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return nil, err
	}
	return stream, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{
			Key: []byte(watchBegin), RangeEnd: []byte(watchEnd),
			StartRevision: after + 1, ProgressNotify: true,
		},
	}})
}

// sleep returns false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
