package datastore

import (
	"errors"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

func gnp(t *testing.T, name, selector string) api.Resource {
	t.Helper()
	r, err := api.Decode([]byte("{kind: GlobalNetworkPolicy, apiVersion: projectcalico.org/v3, metadata: {name: " + name + "}, spec: {selector: \"" + selector + "\"}}"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func selectorOf(t *testing.T, c *Client, name string) string {
	t.Helper()
	r, err := c.Get(t.Context(), api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name})
	if errors.Is(err, ErrNotFound) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return r.(*api.GlobalNetworkPolicy).Spec.Selector
}

func TestTrial(t *testing.T) {
	c := openEtcd(t, testbed.StartEtcd(t))
	ctx := t.Context()
	if _, err := c.Create(ctx, gnp(t, "a", "all()")); err != nil {
		t.Fatal(err)
	}
	before, err := c.read(ctx, api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	try := func() *api.Trial {
		t.Helper()
		trial, err := c.Try(ctx, []api.Resource{gnp(t, "a", "has(x)"), gnp(t, "b", "has(y)")}, 2*time.Second, "me")
		if err != nil {
			t.Fatal(err)
		}
		if selectorOf(t, c, "a") != "has(x)" || selectorOf(t, c, "b") != "has(y)" {
			t.Fatal("the trial has not begun")
		}
		return trial
	}
	trial := try()
	if _, _, err := c.RestoreTrial(ctx, trial.Name, false); !errors.Is(err, ErrHeld) {
		t.Errorf("restored before its time: %v", err)
	}
	// The lease counts, not whoever began.
	deadline := time.Now().Add(20 * time.Second)
	for {
		restored, kept, err := c.RestoreTrial(ctx, trial.Name, false)
		if err == nil {
			if len(restored) != 2 || len(kept) != 0 {
				t.Errorf("restored %v, kept %v", restored, kept)
			}
			break
		}
		if !errors.Is(err, ErrHeld) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	after, err := c.read(ctx, api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "a"})
	if err != nil || string(after.Value) != string(before.Value) || selectorOf(t, c, "b") != "none" {
		t.Errorf("%v: what is back is\n%s\nwhat was is\n%s", err, after.Value, before.Value)
	}
	if err := c.ConfirmTrial(ctx, trial.Name); !errors.Is(err, ErrNotFound) {
		t.Errorf("confirmed too late: %v", err)
	}

	trial = try()
	if err := c.ConfirmTrial(ctx, trial.Name); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.RestoreTrial(ctx, trial.Name, true); !errors.Is(err, ErrNotFound) || selectorOf(t, c, "b") != "has(y)" {
		t.Errorf("restored after it was confirmed: %v", err)
	}

	// What somebody has changed meanwhile is theirs.
	if _, err := c.Delete(ctx, api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "b"}, ""); err != nil {
		t.Fatal(err)
	}
	trial = try()
	if _, err := c.Update(ctx, gnp(t, "b", "has(z)")); err != nil {
		t.Fatal(err)
	}
	restored, kept, err := c.RestoreTrial(ctx, trial.Name, true)
	if err != nil || len(restored) != 1 || len(kept) != 1 || kept[0].Name != "b" || selectorOf(t, c, "b") != "has(z)" {
		t.Errorf("%v: restored %v, kept %v", err, restored, kept)
	}

	// Who starts from an old revision changes nothing.
	stale := gnp(t, "a", "has(w)")
	stale.SetResourceVersion("1")
	if _, err := c.Try(ctx, []api.Resource{gnp(t, "b", "has(w)"), stale}, time.Minute, ""); !errors.Is(err, ErrConflict) || selectorOf(t, c, "b") != "has(z)" {
		t.Errorf("tried from an old revision: %v", err)
	}
}

func TestQuery(t *testing.T) {
	c := openEtcd(t, testbed.StartEtcd(t))
	ctx := t.Context()
	w := c.Watch(ctx)
	q, err := c.AskEnforced(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var asked *api.EnforcementQuery
	for asked == nil {
		<-w.Changed()
		changes, _ := w.Take()
		for _, change := range changes {
			if r, ok := change.Resource.(*api.EnforcementQuery); ok {
				asked = r
			}
		}
	}
	if err := c.AnswerQuery(ctx, asked, Answer{Node: "n1", Revision: 7, Enforced: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.AnswerQuery(ctx, asked, Answer{Node: "n2", Reason: "not yet"}); err != nil {
		t.Fatal(err)
	}
	answers, err := q.Answers(ctx)
	if err != nil || len(answers) != 2 || !answers["n1"].Enforced || answers["n2"].Reason != "not yet" {
		t.Errorf("%v: %v", err, answers)
	}
	if err := q.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if answers, err := q.Answers(ctx); err != nil || len(answers) != 0 {
		t.Errorf("%v: answers stay: %v", err, answers)
	}
	if err := c.AnswerQuery(ctx, asked, Answer{Node: "n1"}); err != nil {
		t.Errorf("a late answer: %v", err)
	}
}
