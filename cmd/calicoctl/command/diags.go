package command

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

// commandTime is how long one command of a bundle may take.
const commandTime = 20 * time.Second

// maxLog is how much of one log file goes into a bundle, from its end.
const maxLog = 8 << 20

// bundle is an archive of files under diagnostics/.
type bundle struct {
	*app
	path string
	file *os.File
	zip  *gzip.Writer
	tar  *tar.Writer
	now  time.Time
}

func (a *app) newBundle(path string) (*bundle, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	b := &bundle{app: a, path: path, file: file, zip: gzip.NewWriter(file), now: time.Now()}
	b.tar = tar.NewWriter(b.zip)
	return b, nil
}

func (b *bundle) add(name string, data []byte) error {
	err := b.tar.WriteHeader(&tar.Header{Name: "diagnostics/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: b.now, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = b.tar.Write(data)
	}
	return err
}

func (b *bundle) close() error {
	for _, end := range []func() error{b.tar.Close, b.zip.Close, b.file.Close} {
		if err := end(); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	return nil
}

// run adds what a command says. One that is not there is told and no failure.
func (b *bundle) run(ctx context.Context, name string, words ...string) error {
	if _, err := exec.LookPath(words[0]); err != nil {
		fmt.Fprintf(b.Out, "  %s is not installed: without %s\n", words[0], name)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err != nil {
		out = append(out, "\n"+strings.Join(words, " ")+": "+err.Error()+"\n"...)
	}
	return b.add(name, out)
}

// document adds a value as JSON, or why there is none.
func (b *bundle) document(name string, value any, err error) error {
	if err != nil {
		return b.add(name, []byte(err.Error()+"\n"))
	}
	var text bytes.Buffer
	if err := output.WriteJSON(&text, value); err != nil {
		return err
	}
	return b.add(name, text.Bytes())
}

func newNodeDiags(a *app) *cobra.Command {
	var logDir, runDir, dir string
	cmd := &cobra.Command{
		Use:   "diags",
		Short: "Collect what is needed to find a fault of this host",
		Long: `Collect into one archive what calico-node, the kernel and the logs of this host say.
It stays on this host; look at it before you give it to others.`,
		Example: "  calicoctl node diags\n  calicoctl node diags --log-dir=/var/log/calico",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.nodeDiags(cmd.Context(), logDir, cmp.Or(runDir, a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir), dir)
		},
	}
	cmd.Flags().StringVar(&logDir, "log-dir", "/var/log/calico", "directory of the daemon's logs")
	cmd.Flags().StringVar(&runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	cmd.Flags().StringVar(&dir, "output-dir", "", "where to put the archive (default: a new directory in the system's temporary one)")
	return cmd
}

// hostCommands are what is asked of the host.
func hostCommands() [][]string {
	return [][]string{
		{"date", "date"}, {"hostname", "hostname"}, {"uname", "uname", "-a"}, {"ss", "ss", "-tuanp"},
		{"ip_addr", "ip", "-d", "addr"}, {"ipv4_route", "ip", "-4", "route", "show", "table", "all"}, {"ipv6_route", "ip", "-6", "route", "show", "table", "all"},
		{"ip_rule", "ip", "rule"}, {"ip_neigh", "ip", "neigh"}, {"link_stats", "ip", "-s", "-s", "link"},
		{"iptables", "iptables-save", "-c"}, {"ip6tables", "ip6tables-save", "-c"}, {"nft_ruleset", "nft", "-a", "list", "ruleset"},
		{"bpf_programs", "bpftool", "prog", "show"}, {"bpf_links", "bpftool", "net", "show"}, {"lsmod", "lsmod"},
		{"sysctl", "sysctl", "-a"}, {"dmesg", "dmesg"}, {"journal", "journalctl", "-u", "calico-node", "--no-pager", "-n", "5000"},
	}
}

func (a *app) nodeDiags(ctx context.Context, logDir, runDir, dir string) error {
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "calico"); err != nil {
			return err
		}
	}
	b, err := a.newBundle(filepath.Join(dir, "diags-"+time.Now().Format("20060102_150405")+".tar.gz"))
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Out, "Collecting diagnostics")
	client := nodeapi.NewClient(runDir)
	limited, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	status, err := client.Status(limited)
	errs := []error{b.document("calico/status.json", status, err)}
	if err == nil {
		bgp, err := client.BGP(limited)
		errs = append(errs, b.document("calico/bgp.json", bgp, err))
		routes, err := client.BGPRoutes(limited)
		errs = append(errs, b.document("calico/bgp_routes.json", routes, err))
		tables, err := client.Tables(limited)
		errs = append(errs, b.document("calico/tables.json", tables, err))
	}
	for _, words := range hostCommands() {
		errs = append(errs, b.run(ctx, words[0], words[1:]...))
	}
	errs = append(errs, b.logs(logDir), b.close())
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return a.say("\nDiags saved to %s", b.path)
}

// logs adds the files of a directory, as far as they are not too long.
func (b *bundle) logs(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // what cannot be read is left out
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return nil
		}
		return b.add(filepath.Join("logs", name), data[max(0, len(data)-maxLog):])
	})
}

func newCluster(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "diags",
		Short: "Collect what is needed to find a fault of the cluster",
		Long: `Collect into one archive all resources, what IPAM has assigned, and which nodes
enforce what is written. It stays on this host; look at it before you give it to
others. 'calicoctl node diags' does the same for one host.`,
		Example: "  calicoctl cluster diags",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.clusterDiags(cmd.Context(), dir) },
	}
	cmd.Flags().StringVar(&dir, "output-dir", ".", "where to put the archive")
	return group("cluster", "The cluster as a whole", "Commands about the cluster as a whole.", "  calicoctl cluster diags", cmd)
}

func (a *app) clusterDiags(ctx context.Context, dir string) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	b, err := a.newBundle(filepath.Join(dir, "calico-diagnostics-"+time.Now().Format("20060102_150405")+".tar.gz"))
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range api.Kinds() {
		found, err := s.List(ctx, k.Name, "")
		name := "resources/" + k.Plural + ".json"
		if k.Internal {
			name = "internal/" + k.Plural + ".json"
		}
		named := make(map[string]api.Resource, len(found)) // what is internal has no name in its JSON
		for _, r := range found {
			named[api.KeyOf(r).String()] = r
		}
		errs = append(errs, b.document(name, named, err))
	}
	limited, cancel := context.WithTimeout(ctx, nodeAnswerTime)
	defer cancel()
	query, err := s.AskEnforced(limited, 2*nodeAnswerTime)
	if err == nil {
		<-limited.Done()
		answers, err := query.Answers(ctx)
		errs = append(errs, b.document("enforced.json", answers, err), query.Close(ctx))
	} else {
		errs = append(errs, b.document("enforced.json", nil, err))
	}
	errs = append(errs, b.close())
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return a.say("Diags saved to %s", b.path)
}
