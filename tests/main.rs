mod transcode;
