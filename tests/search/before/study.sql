BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'by steps/A');
INSERT INTO "studies" VALUES(2,'by steps/B');
INSERT INTO "studies" VALUES(3,'together');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MAXIMIZE',2,0);
INSERT INTO "study_directions" VALUES(3,'MAXIMIZE',3,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'target','"target"');
INSERT INTO "study_user_attributes" VALUES(2,1,'step','"A"');
INSERT INTO "study_user_attributes" VALUES(3,1,'metric','"explained on OUT03,OUT06"');
INSERT INTO "study_user_attributes" VALUES(4,1,'strategy','"stepwise"');
INSERT INTO "study_user_attributes" VALUES(5,1,'sampler','"blockwise"');
INSERT INTO "study_user_attributes" VALUES(6,1,'blockfit:upstream','"{\"A.alpha\": {}}"');
INSERT INTO "study_user_attributes" VALUES(7,1,'blockfit:bound_to','{"recipe": [{"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": {}}], "search space": {"A.OUT03": [0.0, 1.0, null], "A.OUT06": [0.0, 1.0, null]}, "metric": [["explained", ["OUT03", "OUT06"]]], "strategy": "stepwise", "layout": "sd1", "mapping": "supermerger", "base": "base", "seed": 0, "file for base": "9dbe77a9692cbaa2afd09d376775488ad264ff8a21d2cb080aab02370ad29ffd", "file for x": "f557754921aaf1c1bd2dbf63ed7ba8f3ff387cc27b52864ab76182528af92c34", "file for y": "878eb9d9f21fcc880a0726824294683e8c042a195090d4200ce1dd9215945b0c", "file for the target": "dda474bf0d35c7a76d342724d6605129757d5a3d2f1323c749aa709d3a4e264a"}');
INSERT INTO "study_user_attributes" VALUES(8,1,'blockfit:opened','"2026-11-27T22:35:33.774664+00:00"');
INSERT INTO "study_user_attributes" VALUES(9,1,'blockfit:budgets','{"last": {}, "workers": {"9d49b2ee": {"by steps": 3, "together": 3}}, "most": null}');
INSERT INTO "study_user_attributes" VALUES(10,2,'target','"target"');
INSERT INTO "study_user_attributes" VALUES(11,2,'step','"B"');
INSERT INTO "study_user_attributes" VALUES(12,2,'metric','"explained on OUT03,OUT06"');
INSERT INTO "study_user_attributes" VALUES(13,2,'strategy','"stepwise"');
INSERT INTO "study_user_attributes" VALUES(14,2,'sampler','"blockwise"');
INSERT INTO "study_user_attributes" VALUES(15,2,'blockfit:upstream','"{\"A.alpha\": {\"OUT03\": 0.6162567684423897, \"OUT06\": 0.5696266147433234}, \"B.alpha\": {}}"');
INSERT INTO "study_user_attributes" VALUES(16,2,'blockfit:bound_to','{"recipe": [{"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base"}, {"name": "B", "mode": "add_difference", "a": "A", "b": "y", "c": "base", "alpha": {}}], "search space": {"B.OUT03": [0.0, 1.0, null], "B.OUT06": [0.0, 1.0, null]}, "metric": [["explained", ["OUT03", "OUT06"]]], "strategy": "stepwise", "layout": "sd1", "mapping": "supermerger", "base": "base", "seed": 0, "file for base": "9dbe77a9692cbaa2afd09d376775488ad264ff8a21d2cb080aab02370ad29ffd", "file for x": "f557754921aaf1c1bd2dbf63ed7ba8f3ff387cc27b52864ab76182528af92c34", "file for y": "878eb9d9f21fcc880a0726824294683e8c042a195090d4200ce1dd9215945b0c", "file for the target": "dda474bf0d35c7a76d342724d6605129757d5a3d2f1323c749aa709d3a4e264a"}');
INSERT INTO "study_user_attributes" VALUES(17,2,'blockfit:opened','"2026-11-27T22:35:34.150591+00:00"');
INSERT INTO "study_user_attributes" VALUES(18,2,'blockfit:budgets','{"last": {}, "workers": {"9d49b2ee": {"by steps": 3, "together": 3}}, "most": null}');
INSERT INTO "study_user_attributes" VALUES(19,3,'target','"target"');
INSERT INTO "study_user_attributes" VALUES(20,3,'step','"B"');
INSERT INTO "study_user_attributes" VALUES(21,3,'metric','"attention on OUT03,OUT06"');
INSERT INTO "study_user_attributes" VALUES(22,3,'strategy','"joint"');
INSERT INTO "study_user_attributes" VALUES(23,3,'sampler','"tpe"');
INSERT INTO "study_user_attributes" VALUES(24,3,'blockfit:upstream','"{\"A.alpha\": {}, \"B.alpha\": {}}"');
INSERT INTO "study_user_attributes" VALUES(25,3,'blockfit:bound_to','{"recipe": [{"name": "A", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": {}}, {"name": "B", "mode": "add_difference", "a": "A", "b": "y", "c": "base", "alpha": {}}], "search space": {"A.OUT03": [0.0, 1.0, null], "A.OUT06": [0.0, 1.0, null], "B.OUT03": [0.0, 1.0, null], "B.OUT06": [0.0, 1.0, null]}, "metric": [["attention", ["OUT03", "OUT06"]]], "strategy": "joint", "seeds": [114514], "layout": "sd1", "mapping": "supermerger", "base": "base", "seed": 0, "file for base": "9dbe77a9692cbaa2afd09d376775488ad264ff8a21d2cb080aab02370ad29ffd", "file for x": "f557754921aaf1c1bd2dbf63ed7ba8f3ff387cc27b52864ab76182528af92c34", "file for y": "878eb9d9f21fcc880a0726824294683e8c042a195090d4200ce1dd9215945b0c", "file for the target": "dda474bf0d35c7a76d342724d6605129757d5a3d2f1323c749aa709d3a4e264a"}');
INSERT INTO "study_user_attributes" VALUES(26,3,'blockfit:opened','"2026-11-27T22:35:34.506650+00:00"');
INSERT INTO "study_user_attributes" VALUES(27,3,'blockfit:budgets','{"last": {}, "workers": {"9d49b2ee": {"by steps": 3, "together": 3}}, "most": null}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'A.OUT03',6.16256768442389746276e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(2,1,'A.OUT06',5.6962661474332343392e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(3,2,'A.OUT03',0.0234375,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(4,2,'A.OUT06',0.0078125,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(5,3,'A.OUT03',0.9921875,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(6,3,'A.OUT06',0.9921875,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(7,4,'B.OUT03',4.06374572035086367716e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(8,4,'B.OUT06',3.95323609653231211602e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(9,5,'B.OUT03',1.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(10,5,'B.OUT06',0.984375,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(11,6,'B.OUT03',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(12,6,'B.OUT06',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(13,7,'A.OUT03',2.38440963676833150852e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(14,7,'A.OUT06',2.38728565726126856771e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(15,7,'B.OUT03',5.10700477549523190745e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(16,7,'B.OUT06',5.09591945693257164506e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(17,8,'A.OUT03',1.41712492592428018767e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(18,8,'A.OUT06',2.49867168893143754004e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(19,8,'B.OUT03',1.68547716050222784467e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(20,8,'B.OUT06',7.62288788440042552885e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(21,9,'A.OUT03',4.48800177997367377713e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(22,9,'A.OUT06',2.06704282442402575981e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(23,9,'B.OUT03',4.07658786469647038686e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(24,9,'B.OUT06',3.25206391192294885783e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"A.OUT03": 0.6162567684423897, "A.OUT06": 0.5696266147433234}');
INSERT INTO "trial_system_attributes" VALUES(2,4,'fixed_params','{"B.OUT03": 0.40637457203508637, "B.OUT06": 0.3953236096532312}');
INSERT INTO "trial_system_attributes" VALUES(3,7,'fixed_params','{"A.OUT03": 0.23844096367683315, "A.OUT06": 0.23872856572612686, "B.OUT03": 0.5107004775495232, "B.OUT06": 0.5095919456932572}');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'origin','"exact explained"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'block_scores','{"OUT03": 0.4041308863634886, "OUT06": 0.45962714952987405}');
INSERT INTO "trial_user_attributes" VALUES(3,1,'lowest','0.4041308863634886');
INSERT INTO "trial_user_attributes" VALUES(4,1,'distance','0.7535982650553256');
INSERT INTO "trial_user_attributes" VALUES(5,2,'origin','"blockwise"');
INSERT INTO "trial_user_attributes" VALUES(6,2,'block_scores','{"OUT03": 0.03015529197242517, "OUT06": 0.01252122925519239}');
INSERT INTO "trial_user_attributes" VALUES(7,2,'lowest','0.01252122925519239');
INSERT INTO "trial_user_attributes" VALUES(8,2,'distance','0.9893071665335762');
INSERT INTO "trial_user_attributes" VALUES(9,3,'origin','"blockwise"');
INSERT INTO "trial_user_attributes" VALUES(10,3,'block_scores','{"OUT03": 0.2537425003056081, "OUT06": 0.20669518574395795}');
INSERT INTO "trial_user_attributes" VALUES(11,3,'lowest','0.20669518574395795');
INSERT INTO "trial_user_attributes" VALUES(12,3,'distance','0.8774734900918072');
INSERT INTO "trial_user_attributes" VALUES(13,4,'origin','"exact explained"');
INSERT INTO "trial_user_attributes" VALUES(14,4,'block_scores','{"OUT03": 0.8749493707715144, "OUT06": 0.8758928119341153}');
INSERT INTO "trial_user_attributes" VALUES(15,4,'lowest','0.8749493707715144');
INSERT INTO "trial_user_attributes" VALUES(16,4,'distance','0.35295230244480236');
INSERT INTO "trial_user_attributes" VALUES(17,5,'origin','"blockwise"');
INSERT INTO "trial_user_attributes" VALUES(18,5,'block_scores','{"OUT03": -0.1297252834419016, "OUT06": -0.048318870678771386}');
INSERT INTO "trial_user_attributes" VALUES(19,5,'lowest','-0.1297252834419016');
INSERT INTO "trial_user_attributes" VALUES(20,5,'distance','1.0434141544526447');
INSERT INTO "trial_user_attributes" VALUES(21,6,'origin','"blockwise"');
INSERT INTO "trial_user_attributes" VALUES(22,6,'block_scores','{"OUT03": 0.4041308863634886, "OUT06": 0.45962714952987405}');
INSERT INTO "trial_user_attributes" VALUES(23,6,'lowest','0.4041308863634886');
INSERT INTO "trial_user_attributes" VALUES(24,6,'distance','0.7535982650553256');
INSERT INTO "trial_user_attributes" VALUES(25,7,'origin','"exact explained"');
INSERT INTO "trial_user_attributes" VALUES(26,7,'block_scores','{"OUT03": 0.9986256286501884, "OUT06": 0.9961274415254593}');
INSERT INTO "trial_user_attributes" VALUES(27,7,'lowest','0.9961274415254593');
INSERT INTO "trial_user_attributes" VALUES(28,7,'distance','0.06309915982414108');
INSERT INTO "trial_user_attributes" VALUES(29,8,'origin','"tpe"');
INSERT INTO "trial_user_attributes" VALUES(30,8,'block_scores','{"OUT03": -0.05213061720132828, "OUT06": 0.9927343502640724}');
INSERT INTO "trial_user_attributes" VALUES(31,8,'lowest','-0.05213061720132828');
INSERT INTO "trial_user_attributes" VALUES(32,8,'distance','0.5373820830023167');
INSERT INTO "trial_user_attributes" VALUES(33,9,'origin','"tpe"');
INSERT INTO "trial_user_attributes" VALUES(34,9,'block_scores','{"OUT03": 0.7141727730631828, "OUT06": -0.01582479476928711}');
INSERT INTO "trial_user_attributes" VALUES(35,9,'lowest','-0.01582479476928711');
INSERT INTO "trial_user_attributes" VALUES(36,9,'distance','0.277956041403498');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,4.31879017946681320605e-01,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,2.13382606138087793645e-02,'FINITE');
INSERT INTO "trial_values" VALUES(3,3,0,2.30218843024783015316e-01,'FINITE');
INSERT INTO "trial_values" VALUES(4,4,0,8.75421091352814872976e-01,'FINITE');
INSERT INTO "trial_values" VALUES(5,5,0,-8.90220770603364908168e-02,'FINITE');
INSERT INTO "trial_values" VALUES(6,6,0,4.31879017946681320605e-01,'FINITE');
INSERT INTO "trial_values" VALUES(7,7,0,9.97376535087823867797e-01,'FINITE');
INSERT INTO "trial_values" VALUES(8,8,0,4.70301866531372070312e-01,'FINITE');
INSERT INTO "trial_values" VALUES(9,9,0,3.49173989146947860717e-01,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 22:35:33.808823','2026-11-27 22:35:33.818340');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-27 22:35:33.923490','2026-11-27 22:35:33.925509');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-27 22:35:33.975421','2026-11-27 22:35:33.977353');
INSERT INTO "trials" VALUES(4,0,2,'COMPLETE','2026-11-27 22:35:34.188691','2026-11-27 22:35:34.198227');
INSERT INTO "trials" VALUES(5,1,2,'COMPLETE','2026-11-27 22:35:34.250894','2026-11-27 22:35:34.252638');
INSERT INTO "trials" VALUES(6,2,2,'COMPLETE','2026-11-27 22:35:34.306622','2026-11-27 22:35:34.308454');
INSERT INTO "trials" VALUES(7,0,3,'COMPLETE','2026-11-27 22:35:34.533310','2026-11-27 22:35:34.543859');
INSERT INTO "trials" VALUES(8,1,3,'COMPLETE','2026-11-27 22:35:34.599433','2026-11-27 22:35:34.601352');
INSERT INTO "trials" VALUES(9,2,3,'COMPLETE','2026-11-27 22:35:34.659549','2026-11-27 22:35:34.661435');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;