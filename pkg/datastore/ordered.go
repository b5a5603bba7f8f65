package datastore

import (
	"runtime"
	"sync"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// ordered reads many stored objects on all processors and returns what they are in
// the order in which they were added.
type ordered[T any] struct {
	read func(api.Key, *mvccpb.KeyValue) T

	batches []*batch[T]
	busy    sync.WaitGroup
	slots   chan struct{} // one for each processor
}

// batch is what one goroutine reads.
type batch[T any] struct {
	keys   []api.Key
	values []*mvccpb.KeyValue // nil once read
	out    []T
}

const batchSize = 256

func newOrdered[T any](read func(api.Key, *mvccpb.KeyValue) T) *ordered[T] {
	return &ordered[T]{read: read, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// add waits while all processors are busy, so that what is not read yet does not pile
// up.
func (o *ordered[T]) add(key api.Key, kv *mvccpb.KeyValue) {
	if n := len(o.batches); n == 0 || len(o.batches[n-1].keys) == batchSize {
		o.start()
		o.batches = append(o.batches, &batch[T]{})
	}
	b := o.batches[len(o.batches)-1]
	b.keys, b.values = append(b.keys, key), append(b.values, kv)
}

// start lets the last batch be read.
func (o *ordered[T]) start() {
	if len(o.batches) == 0 {
		return
	}
	b := o.batches[len(o.batches)-1]
	o.slots <- struct{}{}
	o.busy.Go(func() {
		b.out = make([]T, len(b.keys))
		for i, kv := range b.values {
			b.out[i] = o.read(b.keys[i], kv)
		}
		b.keys, b.values = nil, nil
		<-o.slots
	})
}

// results returns everything that was added. Nothing is added after that.
func (o *ordered[T]) results() []T {
	o.start()
	o.busy.Wait()
	n := 0
	for _, b := range o.batches {
		n += len(b.out)
	}
	out := make([]T, 0, n)
	for _, b := range o.batches {
		out = append(out, b.out...)
	}
	o.batches = nil
	return out
}
