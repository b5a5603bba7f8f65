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
	Traffic
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
	mux.HandleFunc("POST /v1/why", func(w http.ResponseWriter, r *http.Request) {
		var q WhyQuestion
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&q); err != nil {
			answer(w, nil, &QuestionError{err.Error()})
			return
		}
		why, err := n.Why(r.Context(), q)
		answer(w, why, err)
	})
	mux.HandleFunc("GET /v1/rules", func(w http.ResponseWriter, r *http.Request) {
		rules, err := n.Rules(r.Context(), ruleFilter(r.URL.Query()))
		answer(w, rules, err)
	})
	mux.HandleFunc("GET /v1/tables", func(w http.ResponseWriter, r *http.Request) {
		tables, err := n.Tables(r.Context())
		answer(w, tables, err)
	})
	mux.HandleFunc("GET /v1/flows", func(w http.ResponseWriter, r *http.Request) {
		streamed(w, false, func(yield func(Flow) bool) error {
			f, err := flowFilter(r.URL.Query())
			if err != nil {
				return err
			}
			return n.Flows(r.Context(), f, yield)
		})
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		streamed(w, true, func(yield func(Event) bool) error {
			return n.Events(r.Context(), eventFilter(r.URL.Query()), yield)
		})
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
	if question := (*QuestionError)(nil); errors.As(err, &question) {
		code = http.StatusUnprocessableEntity
	}
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(errorBody{reason})
}
