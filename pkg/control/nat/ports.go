package nat

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// insertBeforeLast inserts rules that masquerade to a range of ports in front of the
// chain's last one. The library leaves the flag out without which the kernel does not
// look at the range, so these messages are our own (linux/netfilter/nf_tables.h).
func (t *tables) insertBeforeLast(table *nftables.Table, chain *nftables.Chain, rules [][]expr.Any) error {
	there, err := t.conn.GetRules(table, chain)
	if err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	if len(there) == 0 {
		return errors.New("rules: gone at once")
	}
	edge := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	messages := []netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, rule := range rules {
		data, err := ruleMessage(table, chain, there[len(there)-1].Handle, rule)
		if err != nil {
			return err
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
			},
			Data: data,
		})
	}
	messages = append(messages, edge(unix.NFNL_MSG_BATCH_END))
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.namespace})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.SendMessages(messages); err != nil {
		return err
	}
	var errs []error
	for range rules {
		if _, err := conn.Receive(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ruleMessage is the body of a message that inserts a rule before another one.
func ruleMessage(table *nftables.Table, chain *nftables.Chain, before uint64, rule []expr.Any) ([]byte, error) {
	var list []netlink.Attribute
	for _, e := range rule {
		data, err := expr.Marshal(byte(table.Family), e)
		if _, ok := e.(*expr.Masq); ok && err == nil {
			data, err = masqueradeMessage(byte(table.Family), e)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	expressions, err := netlink.MarshalAttributes(list)
	if err != nil {
		return nil, err
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain.Name + "\x00")},
		{Type: unix.NFTA_RULE_POSITION, Data: binaryutil.BigEndian.PutUint64(before)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: expressions},
	})
	return append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attributes...), err
}

func masqueradeMessage(family byte, e expr.Any) ([]byte, error) {
	ports, err := expr.MarshalExprData(family, e)
	if err != nil {
		return nil, err
	}
	flags, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_MASQ_FLAGS, Data: binaryutil.BigEndian.PutUint32(expr.NF_NAT_RANGE_PROTO_SPECIFIED)},
	})
	if err != nil {
		return nil, err
	}
	return netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("masq\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: slices.Concat(flags, ports)},
	})
}
