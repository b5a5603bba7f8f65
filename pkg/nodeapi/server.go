package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"calico-xdp/pkg/api"
)

// Node is what the daemon answers from.
type Node interface {
	Status() Status
	BGP(ctx context.Context) (BGPStatus, error)
	BGPRoutes(ctx context.Context) (BGPRoutes, error)
	// Wait blocks as WaitEnforced describes. It returns a *NotEnforcedError
	// when ctx ends first or waiting is of no use.
	Wait(ctx context.Context, key api.Key, revision int64) error
}

// Handler serves a node's state.
func Handler(n Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, n.Status(), nil)
	})
	mux.HandleFunc("GET /v1/bgp", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.BGP(r.Context())
		answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/bgp/routes", func(w http.ResponseWriter, r *http.Request) {
		routes, err := n.BGPRoutes(r.Context())
		answer(w, routes, err)
	})
	mux.HandleFunc("POST /v1/wait", func(w http.ResponseWriter, r *http.Request) {
		var req waitRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&req); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(errorBody{err.Error()})
			return
		}
		ctx := r.Context()
		if req.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, req.Timeout)
			defer cancel()
		}
		answer(w, struct{}{}, n.Wait(ctx, req.key(), req.Revision))
	})
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		json.NewEncoder(w).Encode(v)
		return
	}
	reason, code := err.Error(), http.StatusInternalServerError
	if refused := (*NotEnforcedError)(nil); errors.As(err, &refused) {
		reason, code = refused.Reason, http.StatusConflict
	}
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(errorBody{reason})
}
