package testbed

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Kubernetes is as much of an API server as lists and watches of objects need. The real
// one is packaged nowhere.
type Kubernetes struct {
	t      T
	server *httptest.Server

	mu     sync.Mutex
	events []kubernetesEvent // of all times; the revision is the index plus one
	wake   chan struct{}     // closed when there are more
}

type kubernetesEvent struct {
	kind   string // ADDED, MODIFIED, DELETED
	path   string // of the object
	object json.RawMessage
}

// StartKubernetes starts one on a port of the loopback, without TLS.
func StartKubernetes(t T) *Kubernetes {
	t.Helper()
	k := &Kubernetes{t: t, wake: make(chan struct{})}
	k.server = httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(func() {
		k.server.CloseClientConnections()
		k.server.Close()
	})
	return k
}

// Address is where it listens.
func (k *Kubernetes) Address() string { return k.server.Listener.Addr().String() }

// Kubeconfig is a configuration for clients that reach it at an address.
func (k *Kubernetes) Kubeconfig(address string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u, user: {}}],
contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}`, address)
}

// Put creates or changes an object, given as JSON with its metadata. The path is that of
// the API: "/api/v1/namespaces/default/services/web".
func (k *Kubernetes) Put(path, object string) {
	k.t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		k.t.Fatalf("%s: %v", path, err)
	}
	kind := "ADDED"
	if _, there := k.now()[path]; there {
		kind = "MODIFIED"
	}
	k.add(kind, path, o)
}

// Delete removes an object.
func (k *Kubernetes) Delete(path string) {
	k.t.Helper()
	var o map[string]any
	if err := json.Unmarshal(k.now()[path], &o); err != nil {
		k.t.Fatalf("%s: %v", path, err)
	}
	k.add("DELETED", path, o)
}

func (k *Kubernetes) add(kind, path string, o map[string]any) {
	k.t.Helper()
	words := strings.Split(strings.Trim(path, "/"), "/") // …/namespaces/<namespace>/<plural>/<name>
	n := len(words)
	k.mu.Lock()
	defer k.mu.Unlock()
	m, _ := o["metadata"].(map[string]any)
	if m == nil {
		m = make(map[string]any)
	}
	m["name"], m["namespace"], m["resourceVersion"] = words[n-1], words[n-3], strconv.Itoa(len(k.events)+1)
	o["metadata"] = m
	o["kind"], o["apiVersion"] = kindOf(words[n-2])
	data, err := json.Marshal(o)
	if err != nil {
		k.t.Fatalf("%s: %v", path, err)
	}
	k.events = append(k.events, kubernetesEvent{kind, path, data})
	close(k.wake)
	k.wake = make(chan struct{})
}

func kindOf(plural string) (kind, version string) {
	switch plural {
	case "services":
		return "Service", "v1"
	case "secrets":
		return "Secret", "v1"
	case "endpointslices":
		return "EndpointSlice", "discovery.k8s.io/v1"
	}
	return plural, "v1"
}

// now are the objects that there are, by path.
func (k *Kubernetes) now() map[string]json.RawMessage {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make(map[string]json.RawMessage)
	for _, e := range k.events {
		if all[e.path] = e.object; e.kind == "DELETED" {
			delete(all, e.path)
		}
	}
	return all
}

// serve answers GET of a collection, in one namespace or all, once or as a watch.
func (k *Kubernetes) serve(w http.ResponseWriter, r *http.Request) {
	words := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	plural, namespace := words[len(words)-1], ""
	if len(words) > 2 && words[len(words)-3] == "namespaces" {
		namespace = words[len(words)-2]
	}
	name, named := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	wanted := func(path string) bool {
		p := strings.Split(path, "/")
		n := len(p)
		return p[n-2] == plural && (namespace == "" || p[n-3] == namespace) && (!named || p[n-1] == name)
	}
	w.Header().Set("Content-Type", "application/json")
	k.mu.Lock()
	revision := len(k.events)
	k.mu.Unlock()
	objects := k.now()
	kind, version := kindOf(plural)
	paths := slices.DeleteFunc(slices.Sorted(maps.Keys(objects)), func(p string) bool { return !wanted(p) })
	if watch, _ := strconv.ParseBool(r.URL.Query().Get("watch")); !watch {
		items := []json.RawMessage{}
		for _, p := range paths {
			items = append(items, objects[p])
		}
		json.NewEncoder(w).Encode(map[string]any{
			"kind": kind + "List", "apiVersion": version, "metadata": map[string]any{"resourceVersion": strconv.Itoa(max(revision, 1))}, "items": items,
		})
		return
	}
	send := func(kind string, object any) bool {
		err := json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
		w.(http.Flusher).Flush()
		return err == nil
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if initial, _ := strconv.ParseBool(r.URL.Query().Get("sendInitialEvents")); initial {
		for _, p := range paths {
			send("ADDED", objects[p])
		}
		send("BOOKMARK", map[string]any{"kind": kind, "apiVersion": version, "metadata": map[string]any{
			"resourceVersion": strconv.Itoa(max(revision, 1)), "annotations": map[string]string{"k8s.io/initial-events-end": "true"},
		}})
		from = revision
	}
	w.(http.Flusher).Flush() // the client waits for an answer's head
	for {
		k.mu.Lock()
		events, wake := k.events[min(from, len(k.events)):], k.wake
		from = max(from, len(k.events))
		k.mu.Unlock()
		for _, e := range events {
			if wanted(e.path) && !send(e.kind, e.object) {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-wake:
		}
	}
}
