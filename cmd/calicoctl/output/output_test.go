package output_test

import (
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

func pool(name, cidr string) api.Resource {
	p := v3.NewIPPool()
	p.Name, p.Spec.CIDR, p.Spec.AllowedUses = name, cidr, []v3.IPPoolAllowedUse{"Workload", "Tunnel"}
	return p
}

func kind(t *testing.T, name string) *api.Kind {
	t.Helper()
	k, ok := api.FindKind(name)
	if !ok {
		t.Fatalf("no kind %s", name)
	}
	return k
}

func TestBordered(t *testing.T) {
	var b strings.Builder
	if err := output.Bordered(&b, []output.Column{{Heading: "GROUPING"}, {Heading: "CIDR"}, {Heading: "IPS TOTAL", Right: true}}, [][]string{
		{"IP Pool", "10.65.0.0/16", "65536"},
		{"IP Pool", "fd5f:abcd:64::0/48", "1.2089e+24"},
	}); err != nil {
		t.Fatal(err)
	}
	want := `
+----------+--------------------+------------+
| GROUPING |        CIDR        | IPS TOTAL  |
+----------+--------------------+------------+
| IP Pool  | 10.65.0.0/16       |      65536 |
| IP Pool  | fd5f:abcd:64::0/48 | 1.2089e+24 |
+----------+--------------------+------------+
`
	if diff := cmp.Diff(want, "\n"+b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestColumns(t *testing.T) {
	groups := []output.Group{{Kind: kind(t, "IPPool"), Listed: true, Resources: []api.Resource{pool("a", "10.0.0.0/8"), pool("b\x1b[31m", "fd00::/64")}}}
	var b strings.Builder
	if err := output.Columns(&b, groups, "name,cidr,USES:.spec.allowedUses,FIRST:{.spec.allowedUses[0]},NO:spec.none.at.all", output.Cluster{}); err != nil {
		t.Fatal(err)
	}
	want := "NAME     CIDR         USES                    FIRST      NO       \n" +
		"a        10.0.0.0/8   [\"Workload\",\"Tunnel\"]   Workload   <none>   \n" +
		"b [31m   fd00::/64    [\"Workload\",\"Tunnel\"]   Workload   <none>   \n\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	err := output.Columns(&b, groups, "NAME,ASN", output.Cluster{})
	if err == nil || !strings.Contains(err.Error(), `IPPool has no column "ASN"; it has NAME, NAMESPACE, CIDR,`) {
		t.Errorf("got %v", err)
	}
}

func TestTemplate(t *testing.T) {
	groups := []output.Group{{Kind: kind(t, "IPPool"), Listed: true, Resources: []api.Resource{pool("a", "10.0.0.0/8")}}}
	var b strings.Builder
	text := `{{range .}}{{range .Items}}{{.ObjectMeta.Name}} {{.Spec.CIDR}} {{join .Spec.AllowedUses "+"}}{{end}}{{end}}`
	if err := output.Template(&b, groups, text); err != nil {
		t.Fatal(err)
	}
	if b.String() != "a 10.0.0.0/8 Workload+Tunnel" {
		t.Errorf("got %q", b.String())
	}
	for _, wrong := range []string{"{{", "{{range .}}{{.None}}{{end}}", `{{join 1 ","}}`} {
		if err := output.Template(&b, groups, wrong); err == nil {
			t.Errorf("%q is accepted", wrong)
		}
	}
}

// Every kind that users see has a table that works on an empty resource, and a
// list in JSON even when there is none.
func TestEveryKind(t *testing.T) {
	for _, k := range api.Kinds() {
		if k.Internal {
			continue
		}
		r := k.New()
		r.SetName("x")
		groups := []output.Group{{Kind: k, Listed: true, Resources: []api.Resource{r}}}
		for _, wide := range []bool{false, true} {
			var b strings.Builder
			if err := output.Table(&b, groups, wide, true, output.Cluster{}); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
			lines := strings.Split(b.String(), "\n")
			if len(lines) != 4 || len(lines[0]) != len(lines[1]) || lines[2] != "" {
				t.Errorf("%s: got\n%s", k.Name, b.String())
			}
		}
		var b strings.Builder
		if err := output.JSON(&b, []output.Group{{Kind: k, Listed: true}}); err != nil || !strings.Contains(b.String(), `"items": []`) {
			t.Errorf("%s: %v, %s", k.Name, err, b.String())
		}
	}
}
