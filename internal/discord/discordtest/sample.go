package discordtest

// MessageCreate returns a recorded frame with the size and the shape of a usual
// dispatch, for tests and benchmarks.
func MessageCreate() []byte { return []byte(messageCreate) }

const messageCreate = `{"t":"MESSAGE_CREATE","s":42,"op":0,"d":{"type":0,"tts":false,"timestamp":"2026-11-23T08:42:48.006000+00:00",` +
	`"pinned":false,"nonce":"1574344433229399253","mentions":[],"mention_roles":[],"mention_everyone":false,` +
	`"member":{"roles":["1574343070927847499","1574343070927847500"],"premium_since":null,"pending":false,"nick":null,` +
	`"mute":false,"joined_at":"2026-01-23T08:37:17.107000+00:00","flags":0,"deaf":false,"communication_disabled_until":null,` +
	`"banner":null,"avatar":null},"id":"1574344433229399253","flags":0,"embeds":[{"type":"rich","title":"A title with \"quotes\"",` +
	`"description":"Some text that goes on for a while, as text in embeds does.","fields":[{"name":"a","value":"b","inline":true}]}],` +
	`"edited_timestamp":null,"content":"Hello there, this is a message of the usual length \u2764","components":[],` +
	`"channel_type":0,"channel_id":"1574343070961401933","author":{"username":"someone","public_flags":0,"primary_guild":null,` +
	`"id":"1574343067228471333","global_name":"Someone","display_name_styles":null,"discriminator":"0","collectibles":null,` +
	`"clan":null,"avatar_decoration_data":null,"avatar":"0123456789abcdef0123456789abcdef"},"attachments":[],` +
	`"guild_id":"1574343070927847498"}}`
