package datastore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
)

// Backup writes the whole of the datastore, as of one moment, to a file: what
// etcd calls a snapshot, with its checksum at the end. etcd's own tools restore it
// as well as [RestoreEmbedded]. The file is its owner's only. A file that is
// there is replaced once the new one is complete.
func (c *Client) Backup(ctx context.Context, path string) (size int64, err error) {
	etcd, err := c.connect(ctx)
	if err != nil {
		return 0, c.failed(ctx, err)
	}
	stream, err := etcd.Snapshot(ctx)
	if err != nil {
		return 0, c.failed(ctx, err)
	}
	defer stream.Close()
	part := path + ".part"
	file, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer os.Remove(part)
	size, err = io.Copy(file, stream)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return 0, fmt.Errorf("backup: %w", err)
	}
	data, sum, err := readBackup(part)
	if err != nil {
		return 0, err
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], sum) {
		return 0, errors.New("backup: what arrived is not what was sent")
	}
	return size, os.Rename(part, path)
}

// readBackup returns the database in a backup and its checksum.
func readBackup(path string) (data, sum []byte, err error) {
	data, err = os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	// The database is whole sectors.
	if len(data) < sha256.Size || len(data)%512 != sha256.Size {
		return nil, nil, fmt.Errorf("%s: not a whole backup of etcd", path)
	}
	return data[:len(data)-sha256.Size], data[len(data)-sha256.Size:], nil
}

// RestoreEmbedded makes the embedded etcd's data what a backup holds, and returns
// how many keys that are. No daemon may be using the directory. What was there is
// kept beside it, in "etcd.before-restore-<time>". Nodes that followed the old
// data notice and read everything again.
func RestoreEmbedded(ctx context.Context, config EmbeddedConfig, path string, log *slog.Logger) (int, error) {
	data, sum, err := readBackup(path)
	if err != nil {
		return 0, err
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], sum) {
		return 0, fmt.Errorf("%s: damaged: its checksum is wrong", path)
	}
	work, err := os.MkdirTemp(filepath.Dir(filepath.Clean(config.Dir)), ".restore-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	n, err := writeBackup(ctx, data, work, log)
	if err != nil {
		return 0, fmt.Errorf("restore %s: %w", path, err)
	}

	e := &Embedded{}
	if err := e.lockDir(config.Dir); err != nil {
		return 0, fmt.Errorf("%s: %w", config.Dir, err)
	}
	defer e.Close()
	live := filepath.Join(config.Dir, "etcd")
	if _, err := os.Stat(live); !errors.Is(err, fs.ErrNotExist) {
		aside := live + ".before-restore-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Rename(live, aside); err != nil {
			return 0, err
		}
	}
	return n, os.Rename(filepath.Join(work, "new", "etcd"), live)
}

// writeBackup makes a data directory, work/new, with the keys of a database.
func writeBackup(ctx context.Context, data []byte, work string, log *slog.Logger) (n int, err error) {
	database := filepath.Join(work, "db")
	if err := os.WriteFile(database, data, 0o600); err != nil {
		return 0, err
	}
	etcd, err := StartEmbedded(EmbeddedConfig{Dir: filepath.Join(work, "new"), ListenClients: []string{"http://127.0.0.1:0"}}, log)
	if err != nil {
		return 0, err
	}
	defer etcd.Close()
	client, err := clientv3.New(clientv3.Config{Endpoints: etcd.Endpoints(), Context: ctx, Logger: zap.NewNop(), DialTimeout: requestTimeout})
	if err != nil {
		return 0, err
	}
	defer client.Close()

	b := backend.NewDefaultBackend(zap.NewNop(), database)
	defer b.Close()
	store := mvcc.NewStore(zap.NewNop(), b, &lease.FakeLessor{}, mvcc.StoreConfig{})
	defer store.Close()
	const batch = 100 // of the 128 operations that etcd takes at once
	for from := []byte{0}; ; {
		page, err := store.Range(ctx, from, []byte{}, mvcc.RangeOptions{Limit: batch})
		if err != nil {
			return n, err
		}
		if len(page.KVs) == 0 {
			return n, nil
		}
		var puts []clientv3.Op
		for _, kv := range page.KVs {
			puts = append(puts, clientv3.OpPut(string(kv.Key), string(kv.Value)))
		}
		if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
			return n, err
		}
		n += len(puts)
		from = append(bytes.Clone(page.KVs[len(page.KVs)-1].Key), 0)
	}
}
