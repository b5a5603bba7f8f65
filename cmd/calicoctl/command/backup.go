package command

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newDatastore(a *app) *cobra.Command {
	return group("datastore", "Keep the datastore safe", "Commands about the datastore as a whole.",
		"  calicoctl datastore backup calico.db", newDatastoreBackup(a), newMigrate(a))
}

func newDatastoreBackup(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all of the datastore to a file",
		Long: `Write all of etcd, as of one moment, to a file that only you can read; passwords
may be in it. It is etcd's own format: etcdctl and etcdutl check and restore it. The
etcd inside calico-node goes back to it with 'calico-node --restore FILE', with the
daemon stopped.

An etcd that has grown is moved out of calico-node the same way: restore the backup
into the first of three etcd members with 'etcdutl snapshot restore', let the
others join it ('etcdctl member add'), and set ETCD_ENDPOINTS everywhere.`,
		Example: "  calicoctl datastore backup /var/backups/calico.db",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("name the file to write"), cmd.CommandPath()}
			}
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			size, err := s.Backup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "%s: %d bytes\n", args[0], size)
			return err
		},
	}
}
