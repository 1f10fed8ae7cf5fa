DELETE FROM sweeps WHERE task = 'deliveries';
DROP TABLE backchannel_deliveries;
DROP TABLE backchannel_endpoints;
